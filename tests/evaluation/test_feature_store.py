import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_features import alexnet_file, given, i3d_file

from evaluation.distances import SET_METRICS
from evaluation.features.extract import Extraction
from evaluation.features.store import FeatureStore, contents, feature_key
from evaluation.settings import read_protocol
from trace_lightning.errors import UserError

KEY = feature_key("volume", "alexnet", "weights", {"cut": "SPL"}, {"spacing_mm": 1.5})


def counted(array):
    calls = []

    def compute():
        calls.append(1)
        return array

    return compute, calls


def test_features_are_computed_once(tmp_path):
    store = FeatureStore(tmp_path)
    compute, calls = counted(np.arange(6.0).reshape(2, 3))
    for _ in range(3):
        assert np.array_equal(store.features(KEY, compute), [[0, 1, 2], [3, 4, 5]])
    assert np.array_equal(FeatureStore(tmp_path).features(KEY, compute), [[0, 1, 2], [3, 4, 5]])
    assert len(calls) == 1
    assert store.features(KEY, compute).dtype == np.float32


@pytest.mark.parametrize("changed", ["volume", "extractor", "weights", "view", "grid", "code"])
def test_whatever_features_depend_on_is_in_the_key(tmp_path, changed):
    store = FeatureStore(tmp_path)
    store.features(KEY, lambda: np.zeros((1, 2)))
    assert store.features(dict(KEY) | {changed: "other"}, lambda: np.ones((1, 2))).sum() == 2


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"nonsense"])
def test_damaged_files_are_computed_again(tmp_path, damage):
    store = FeatureStore(tmp_path)
    store.features(KEY, lambda: np.ones((4, 4)))
    (path,) = tmp_path.rglob("*.npy")
    path.write_bytes(damage or path.read_bytes()[:-8])
    assert store.features(KEY, lambda: np.full((4, 4), 2.0)).sum() == 32
    assert store.features(KEY, lambda: np.zeros((4, 4))).sum() == 32


def test_a_volume_without_clips_is_kept_too(tmp_path):
    store = FeatureStore(tmp_path)
    store.features(KEY, lambda: np.empty((0, 400)))
    assert store.features(KEY, lambda: pytest.fail("computed again")).shape == (0, 400)


def test_nothing_half_written_is_left(tmp_path):
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureStore(tmp_path).features(KEY, stopped)
    assert list(tmp_path.rglob("*.npy")) == []


def test_records_are_computed_once(tmp_path):
    store = FeatureStore(tmp_path)
    compute, calls = counted({"value": 1.5})
    for _ in range(2):
        assert store.record("distances", {"a": 1}, compute) == {"value": 1.5}
    assert len(calls) == 1
    store.record("distances", {"a": 2}, compute)
    next(tmp_path.rglob("*.json")).write_text("{")
    for a in (1, 2):
        store.record("distances", {"a": a}, compute)
    assert len(calls) == 3


def test_contents_of_a_set():
    features = {"a": np.zeros((2, 3)), "b": np.ones((1, 3))}
    assert contents(features) == contents(dict(reversed(features.items())))
    assert contents(features) != contents(features | {"b": np.ones((1, 3)) * 2})
    assert contents(features) != contents({"a": features["b"], "b": features["a"]})


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory):
    """Random weights of two networks where published ones would lie."""
    root = tmp_path_factory.mktemp("weights")
    for folder, make, name in (
        ("lpips", alexnet_file, "alexnet-owt-7be5be79.pth"),
        ("i3d", i3d_file, "i3d_kinetics400.safetensors"),
    ):
        (root / folder).mkdir()
        make(root / folder).rename(root / folder / name)
    return root


def volume(seed, depth=20):
    return np.random.default_rng(seed).integers(0, 256, (depth, 24, 24), dtype=np.uint8)


TRACE, STYLEGAN_V = (read_protocol(name).views() for name in ("trace", "stylegan_v"))
METRICS = [SET_METRICS[name] for name in ("fid", "fd_alexnet_2p5d", "kd_alexnet", "fvd_i3d")]


@pytest.fixture
def unchecked(monkeypatch):
    """Random weights have no published checksum."""
    monkeypatch.setattr("evaluation.weights.check", lambda path, file: None)


def test_from_volumes_to_distances(tmp_path, weights_dir, unchecked):
    extraction = Extraction(METRICS, TRACE, weights_dir, FeatureStore(tmp_path))
    assert list(extraction.cuts) == [
        ("alexnet", "SPL"),
        ("alexnet", "PIL"),
        ("alexnet", "LIP"),
        ("i3d_kinetics400", "clips"),
    ]
    made, real = (
        {
            f"case_{i}": extraction.case(
                f"case_{i}", f"{side}{i}", lambda _, i=i, side=side: volume(10 * side + i), real=bool(side)
            )
            for i in range(2)
        }
        for side in (0, 1)
    )
    assert {cut: found.shape for cut, found in made["case_0"].items()} == {
        ("alexnet", "SPL"): (20, 256),
        ("alexnet", "PIL"): (24, 256),
        ("alexnet", "LIP"): (24, 256),
        ("i3d_kinetics400", "clips"): (2, 400),
    }
    found = extraction.distances(made, real, samples=5)
    assert found["fid"].value is None
    assert "weights fetch inception_2015" in found["fid"].reason
    assert found["fvd_i3d"].n_generated == 4
    assert found["fd_alexnet_2p5d"].value > 0
    json.dumps({name: distance.to_json() for name, distance in found.items()})


def test_a_known_distance_and_a_known_floor_are_not_computed_again(tmp_path, weights_dir, unchecked, monkeypatch):
    extraction = Extraction([SET_METRICS["fd_alexnet"]], TRACE, weights_dir, FeatureStore(tmp_path))

    def side(seed):
        rng = np.random.default_rng(seed)
        return {f"case_{i}": {("alexnet", "SPL"): rng.normal(size=(9, 256))} for i in range(4)}

    first = extraction.distances(side(1), side(0), samples=5)["fd_alexnet"]
    assert first.floor.volumes == 2
    monkeypatch.setattr("evaluation.features.extract.real_floor", lambda *_, **__: pytest.fail("floor"))
    other = extraction.distances(side(2), side(0), samples=5)["fd_alexnet"]
    assert other.floor == first.floor
    monkeypatch.setattr("evaluation.features.extract.set_distance", lambda *_, **__: pytest.fail("distance"))
    assert extraction.distances(side(1), side(0), samples=5)["fd_alexnet"] == first


def test_a_second_run_reads_neither_volumes_nor_weights(tmp_path, weights_dir, unchecked, monkeypatch):
    def run(read):
        extraction = Extraction(METRICS, STYLEGAN_V, weights_dir, FeatureStore(tmp_path))
        return extraction.case("case", "digest", read, real=True)

    first = run(lambda _: volume(0))
    monkeypatch.setattr("evaluation.features.extractors.Extractor.load", lambda *_: pytest.fail("weights were read"))
    second = run(lambda _: pytest.fail("the volume was read"))
    assert all(np.array_equal(first[cut], second[cut]) for cut in first)


def test_random_clips_are_keyed_by_case_and_seed(tmp_path, weights_dir, unchecked):
    def clips(case_id, seed, real):
        metrics = [SET_METRICS["fvd_i3d"]]
        extraction = Extraction(metrics, STYLEGAN_V, weights_dir, FeatureStore(tmp_path), seed=seed)
        return extraction._key("i3d_kinetics400", "clips", case_id, "digest", real, None)

    assert clips("a", 0, True) != clips("b", 0, True)
    assert clips("a", 0, True) != clips("a", 1, True)
    assert clips("a", 0, False) == clips("b", 1, False)


def test_only_so_many_volumes_enter_as_a_protocol_says(tmp_path, weights_dir, unchecked):
    from dataclasses import replace

    views = replace(TRACE, slices=replace(TRACE.slices, max_volumes=2))
    extraction = Extraction([SET_METRICS["fd_alexnet"]], views, weights_dir, FeatureStore(tmp_path))
    side = {name: {("alexnet", "SPL"): np.random.default_rng(i).normal(size=(5, 256))} for i, name in enumerate("cab")}
    assert extraction.distances(side, side, samples=0)["fd_alexnet"].volumes_reference == 2


def test_weights_with_a_wrong_checksum_are_named(tmp_path, weights_dir):
    extraction = Extraction([SET_METRICS["fd_alexnet"]], TRACE, weights_dir, FeatureStore(tmp_path))
    with pytest.raises(UserError, match=r"alexnet-owt.*sha256 is .* its publisher's 7be5be79"):
        extraction.case("case", "digest", lambda _: volume(0), real=True)


@pytest.mark.weights
def test_lpips_of_the_published_examples():
    """The package's own example images; 0.722 and 0.138 in its README."""
    from PIL import Image

    from evaluation.lpips import Lpips

    path = given("alexnet")
    lpips = Lpips(path)
    ref, p0, p1 = (
        np.asarray(Image.open(path.parent / f"ex_{name}.png").convert("RGB"))[None] for name in ("ref", "p0", "p1")
    )
    assert lpips(ref, p0)[0] == pytest.approx(0.7219, abs=1e-4)
    assert lpips(ref, p1)[0] == pytest.approx(0.1376, abs=1e-4)


@pytest.fixture(scope="module")
def random_lpips(tmp_path_factory):
    from evaluation.lpips import Lpips

    return Lpips(alexnet_file(tmp_path_factory.mktemp("lpips")))


def test_lpips_of_pairs(random_lpips):
    images = np.random.default_rng(0).integers(0, 256, (9, 64, 70), dtype=np.uint8)
    found = random_lpips(images, np.roll(images, 1, axis=0))
    assert found.shape == (9,)
    assert (found > 0).all()
    assert np.array_equal(random_lpips(images, images), np.zeros(9))
    colour = np.stack([images] * 3, axis=-1)
    np.testing.assert_allclose(random_lpips(colour, np.roll(colour, 1, axis=0)), found, rtol=1e-5)
    random_lpips.batch = 2
    np.testing.assert_allclose(random_lpips(images, np.roll(images, 1, axis=0)), found, rtol=1e-3)


def test_lpips_refuses(random_lpips, tmp_path):
    small = np.zeros((1, 40, 80), np.uint8)
    with pytest.raises(UserError, match="40 x 80 pixels; LPIPS needs 63"):
        random_lpips(small, small)
    with pytest.raises(ValueError, match="uint8 of one shape"):
        random_lpips(small.astype(float), small)
    torch.save({"features.0.weight": torch.zeros(2)}, tmp_path / "alexnet.pth")
    with pytest.raises(UserError, match="not the weights of"):
        type(random_lpips)(Path(tmp_path / "alexnet.pth"))


@pytest.mark.weights
def test_blur_moves_the_distance_and_fresh_volumes_do_not(tmp_path):
    """Blurred chests lie far beyond the floor of real against real, other real chests do not."""
    from scipy import ndimage
    from toy_chest import chest

    from evaluation.along_z import grey

    given("alexnet")
    metrics = [SET_METRICS["fd_alexnet"], SET_METRICS["kd_alexnet"]]
    extraction = Extraction(metrics, TRACE, given("alexnet").parents[1], FeatureStore(tmp_path))

    def features(seeds, sigma=0.0):
        found = {}
        for seed in seeds:
            hu = ndimage.gaussian_filter(chest(seed)[0].hu, (0, sigma, sigma))
            found[f"{seed}"] = extraction.case(f"{seed}", f"{seed} {sigma}", lambda _, hu=hu: grey(hu), real=True)
        return found

    real = features(range(6))
    fresh, blurred = (
        extraction.distances(made, real, samples=20) for made in (features(range(6, 12)), features(range(6), 1.0))
    )
    for name in ("fd_alexnet", "kd_alexnet"):
        assert blurred[name].value > 2 * fresh[name].value
        assert blurred[name].low > fresh[name].high
    assert blurred["fd_alexnet"].value > blurred["fd_alexnet"].floor.value
    assert extraction.distances(real, real, samples=0)["fd_alexnet"].value < 1e-6
