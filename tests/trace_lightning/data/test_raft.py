import os
import pickle
import re
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from scipy import ndimage
from torchvision.models import get_model

from trace_lightning.artifacts import read_volume
from trace_lightning.config import DataConfig
from trace_lightning.data import cache
from trace_lightning.data.ct_rate import Scan, volume_path
from trace_lightning.data.flow import identity, image_flow, quality, to_shares, warp
from trace_lightning.data.preprocess import hu_to_unit
from trace_lightning.data.raft import raft_flow, torchvision_names, weights_stamp
from trace_lightning.errors import UserError

# What torchvision's modules are called by the authors (princeton-vl/RAFT, core/extractor.py and update.py).
TO_AUTHORS = (
    (r"^(feature|context)_encoder\.convnormrelu\.0", r"\1_encoder.conv1"),
    (r"^(feature|context)_encoder\.convnormrelu\.1", r"\1_encoder.norm1"),
    (r"^(feature|context)_encoder\.conv\.", r"\1_encoder.conv2."),
    (r"convnormrelu(\d)\.0", r"conv\1"),
    (r"convnormrelu(\d)\.1", r"norm\1"),
    (r"^feature_encoder", "fnet"),
    (r"^context_encoder", "cnet"),
    (r"motion_encoder\.conv\.0", "encoder.conv"),
    (r"motion_encoder\.convcorr(\d)\.0", r"encoder.convc\1"),
    (r"motion_encoder\.convflow(\d)\.0", r"encoder.convf\1"),
    (r"recurrent_block\.convgru(\d)\.conv(.)", r"gru.conv\2\1"),
    (r"^mask_predictor\.convrelu\.0", "update_block.mask.0"),
    (r"^mask_predictor\.conv\.", "update_block.mask.2."),
)


def authors_names(model: str, weights: dict) -> dict:
    """Write torchvision's weights as the authors' training script saves them."""
    out = {}
    for name, value in weights.items():
        for pattern, replacement in TO_AUTHORS:
            name = re.sub(pattern, replacement, name)
        if model == "raft_small":  # it has one GRU
            name = re.sub(r"gru\.conv(.)1", r"gru.conv\1", name)
        out[f"module.{name}"] = value
        if ".downsample.1." in name:
            out[f"module.{name}".replace("downsample.1", "norm3")] = value
    return out


SPELLED_LARGE = (
    "cnet.norm1.running_mean", "cnet.layer1.1.norm2.weight", "cnet.layer2.0.norm3.bias",
    "cnet.layer3.0.downsample.1.bias", "cnet.layer2.0.downsample.0.weight", "update_block.encoder.convc2.weight",
    "update_block.encoder.convf1.bias", "update_block.gru.convq2.weight", "update_block.mask.2.weight",
)  # fmt: skip


def random_weights(model: str, seed: int = 0) -> dict:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_model(model).state_dict()


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return (H, W) float32 in [-1, 1]."""
    noise = np.random.default_rng(seed).normal(size=(height, width))
    image = ndimage.gaussian_filter(noise, max(height, width) / 40, mode="wrap")
    return np.interp(image, (image.min(), image.max()), (-1, 1)).astype(np.float32)


def data_of(path: object, model: str = "raft_small", **keys) -> DataConfig:
    return DataConfig(flow_source="raft", flow_model=model, flow_weights=str(path), **keys)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("raft") / "small.pth"
    torch.save(random_weights("raft_small"), path)
    return path


@pytest.fixture
def real_small() -> Path:
    path = Path(os.environ.get("TRACE_WEIGHTS", "")) / "raft" / "raft-small.pth"
    if "TRACE_WEIGHTS" not in os.environ or not path.is_file():
        pytest.skip("set TRACE_WEIGHTS to a folder that holds raft/raft-small.pth")
    return path


@pytest.mark.parametrize("model", ["raft_small", "raft_large"])
def test_both_name_formats_give_the_same_weights(model):
    weights = random_weights(model)
    theirs = authors_names(model, weights)
    spelled = {"module.fnet.layer2.0.conv2.weight", "module.cnet.conv2.bias", "module.update_block.encoder.conv.weight"}
    if model == "raft_large":
        spelled |= {f"module.{name}" for name in SPELLED_LARGE}
    assert spelled <= theirs.keys()
    for named in (weights, theirs, {name.removeprefix("module."): value for name, value in theirs.items()}):
        ours = torchvision_names(named)
        assert ours.keys() == weights.keys()
        assert all(torch.equal(ours[name], weights[name]) for name in weights)


def test_flow_from_both_formats_is_identical(small, tmp_path):
    torch.save(authors_names("raft_small", torch.load(small, weights_only=True)), tmp_path / "authors.pth")
    slices = np.stack([texture(64, 64, seed) for seed in (0, 1)])
    (ours,) = raft_flow(slices, [(0, 1)], data_of(small))
    (theirs,) = raft_flow(slices, [(0, 1)], data_of(tmp_path / "authors.pth"))
    np.testing.assert_array_equal(ours, theirs)
    assert ours.shape == (2, 64, 64)
    assert ours.std() > 0


@pytest.mark.parametrize("shape", [(64, 64), (130, 200)])
def test_batches_change_nothing_and_sizes_are_kept(small, shape, monkeypatch):
    slices = np.stack([texture(*shape, seed) for seed in range(4)])
    wanted = [(0, 1), (1, 3), (3, 0)]
    together = list(raft_flow(slices, wanted, data_of(small)))
    monkeypatch.setattr("trace_lightning.data.raft.BATCH_PIXELS", 1)
    alone = list(raft_flow(slices, wanted, data_of(small)))
    assert [flow.shape for flow in together] == [(2, *shape)] * 3
    np.testing.assert_allclose(np.stack(together), np.stack(alone), atol=1e-3)
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_the_network_is_torchvisions_own(small):
    slices = np.stack([texture(128, 128, seed) for seed in (0, 1)])
    network = get_model("raft_small")
    network.load_state_dict(torch.load(small, weights_only=True))
    with torch.no_grad():
        a, b = (torch.from_numpy(image).expand(1, 3, -1, -1) for image in slices)
        expected = network.eval()(a, b)[-1][0].numpy()
    (flow,) = raft_flow(slices, [(0, 1)], data_of(small))
    np.testing.assert_allclose(flow, expected, atol=1e-4)


def test_a_replaced_file_is_read_again_and_has_another_name(tmp_path):
    path = tmp_path / "weights.pth"
    slices = np.stack([texture(64, 64, seed) for seed in (0, 1)])
    found = []
    for seed in (0, 1):
        torch.save(random_weights("raft_small", seed), path)
        found.append((identity(data_of(path)), next(raft_flow(slices, [(0, 1)], data_of(path)))))
    assert found[0][0] != found[1][0]
    assert np.abs(found[0][1] - found[1][1]).max() > 1e-3


def test_the_identity_names_weights_not_their_place(small, tmp_path):
    (tmp_path / "moved.pth").write_bytes(small.read_bytes())
    assert identity(data_of(small)) == identity(data_of(tmp_path / "moved.pth"))
    assert weights_stamp(data_of("hub", "raft_large")) == "raft_large C_T_SKHT_V2"
    assert weights_stamp(data_of(tmp_path / "absent.pth")) is None
    assert weights_stamp(DataConfig(flow_source="dis", flow_weights=str(small))) is None
    assert identity(data_of(small)) != identity(data_of(small, flow_resolution="original"))


def write_text(path):
    path.write_text("not weights")


def write_code(path):
    class Malice:
        def __reduce__(self):
            return os.mkdir, (str(path.parent / "ran"),)

    path.write_bytes(pickle.dumps(Malice()))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such file. Give data.flow_weights=PATH .*data.flow_source=dis"),
        (write_text, "cannot be read as PyTorch weights"),
        (write_code, "cannot be read as PyTorch weights"),
        (lambda path: torch.save([1, 2], path), "holds a list, not named weights"),
        (lambda path: torch.save(random_weights("raft_large"), path), "not the weights of data.flow_model=raft_small"),
        (
            lambda path: torch.save(dict(list(random_weights("raft_small").items())[:-1]), path),
            "not the weights of data.flow_model=raft_small(.|\n)*update_block.flow_head.conv2.bias",
        ),
    ],
    ids=["absent", "text", "pickled code", "list", "large", "incomplete"],
)
def test_bad_weights_are_an_error_never_random_ones(tmp_path, write, message):
    path = tmp_path / "weights.pth"
    write(path)
    slices = np.zeros((2, 64, 64), np.float32)
    with pytest.raises(UserError, match=f"data.flow_weights={path}: {message}"):
        next(raft_flow(slices, [(0, 1)], data_of(path)))
    assert not (tmp_path / "ran").exists()


def test_hub_weights_are_torchvisions_or_an_error(small, monkeypatch):
    asked = []

    def download(url, *args, **kwargs):
        asked.append(url)
        return torch.load(small, weights_only=True)

    slices = np.stack([texture(64, 64, seed) for seed in (0, 1)])
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    (flow,) = raft_flow(slices, [(0, 1)], data_of("hub"))
    (expected,) = raft_flow(slices, [(0, 1)], data_of(small))
    np.testing.assert_array_equal(flow, expected)
    assert "raft_small_C_T_V2" in asked[0]

    def offline(url, *args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"torchvision's weights of raft_large cannot be downloaded .*no network"):
        next(raft_flow(slices, [(0, 1)], data_of("hub", "raft_large")))


def test_prepared_volumes_hold_the_flow_of_raft(full_tree, tmp_path, make_experiment, quiet, small):
    experiment = make_experiment(full_tree.root, tmp_path)
    data = experiment.data
    data.flow_source, data.flow_model, data.flow_weights, data.skips = "raft", "raft_small", str(small), [4]
    data.num_train_patients, data.num_val_patients, data.num_test_patients = 1, 0, 1
    (case,) = cache.prepare(experiment, quiet).cases("train")
    unit = hu_to_unit(case.image.astype(np.float32), data)
    (_, expected) = raft_flow(unit, [(0, 4), (4, 8)], data)
    np.testing.assert_allclose(case.flow(4, 8), to_shares(expected, 4), rtol=1e-3, atol=1e-4)
    assert case.flow(4, 8).dtype == np.float16
    assert case.meta["flow"]["4"]["pairs_checked"] == 2
    data.flow_weights = str(tmp_path / "absent.pth")
    with pytest.raises(UserError, match=r"absent\.pth: no such file"):
        cache.prepare(experiment, quiet)


@pytest.mark.weights
@pytest.mark.parametrize(("size", "tolerance"), [(64, 0.3), (256, 0.1)])  # 64 x 64 is 8 x 8 features of the network
def test_real_weights_find_a_roll(real_small, size, tolerance):
    image = texture(size, size)
    slices = np.stack([image, np.roll(image, (3, 5), axis=(0, 1))])
    (flow,) = raft_flow(slices, [(0, 1)], data_of(real_small))
    np.testing.assert_allclose(np.median(flow, axis=(1, 2)), [5, 3], atol=tolerance)


@pytest.mark.weights
def test_real_weights_under_both_names_give_identical_flow(real_small, tmp_path):
    weights = torch.load(real_small, map_location="cpu", weights_only=True)
    assert len(weights) == 106
    assert weights.keys() == authors_names("raft_small", random_weights("raft_small")).keys()
    torch.save(torchvision_names(weights), tmp_path / "torchvision.pth")
    get_model("raft_small").load_state_dict(torch.load(tmp_path / "torchvision.pth", weights_only=True))
    slices = np.stack([texture(128, 128), np.roll(texture(128, 128), (3, 5), axis=(0, 1))])
    (authors,) = raft_flow(slices, [(0, 1)], data_of(real_small))
    (torchvisions,) = raft_flow(slices, [(0, 1)], data_of(tmp_path / "torchvision.pth"))
    np.testing.assert_array_equal(authors, torchvisions)


@pytest.mark.weights
@pytest.mark.real_ct
@pytest.mark.slow
@pytest.mark.parametrize("skip", [1, 2])
def test_warping_real_slices_back_brings_them_nearer(real_small, real_ct, skip):
    """Slices lie 5 mm apart, so that most of what changes is no motion: a small gain is what there is."""
    volume = read_volume(volume_path(real_ct, "train_1_a_2"))
    data = data_of(real_small)
    hu = volume.hu.clip(data.hu_min, data.hu_max)
    unit = hu_to_unit(hu, data)
    scan = Scan("train_1_a_2", "train_1", "train", Path(), None, None, None)
    every = [(i, i + skip) for i in range(len(unit) - skip)]
    between = image_flow(scan, hu, volume.grid, data, real_ct)
    unmoved, moved, reverse = [], [], []
    for (i, j), flow in zip(every, between(every), strict=True):
        unmoved.append(np.abs(unit[i] - unit[j]).mean())
        moved.append(np.abs(unit[i] - warp(unit[j], flow)).mean())
        reverse.append(np.abs(unit[i] - warp(unit[j], -flow)).mean())
    print(f"\nskip {skip}: {np.mean(unmoved):.4f} -> {np.mean(moved):.4f}, the wrong way {np.mean(reverse):.4f}")
    assert np.mean(moved) < (0.95, 0.92)[skip - 1] * np.mean(unmoved)
    assert np.mean(reverse) > np.mean(unmoved)
    assert quality(between, every)["consistent_percent"] > 50
