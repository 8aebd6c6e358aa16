"""VISTA3D's network is MONAI's own with random weights of a fixed seed, a sixth as wide where nothing else is said.

With PyTorch's own initialisation about 50 of the 117 classes win somewhere, so that labels are worth comparing.
"""

import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.apps.vista3d.transforms import VistaPostTransformd
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.transforms import Compose, CropForegroundd, Invertd, Orientationd, ScaleIntensityRanged, Spacingd
from random_vista3d import random_network
from scipy import ndimage

from trace_lightning.anatomy import vista3d
from trace_lightning.anatomy.grid import Grid
from trace_lightning.anatomy.labels import everything_ids, granularity_map
from trace_lightning.anatomy.vista3d import Vista3D, best_ids
from trace_lightning.errors import UserError

PROMPTS = torch.tensor(everything_ids())


def texture(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return a smooth float32 image in [0, 1]."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return torch.from_numpy(np.interp(noise, (noise.min(), noise.max()), (0, 1)).astype(np.float32))


def monai_logits(image: torch.Tensor, network: torch.nn.Module, window: int, overlap: float = 0.25) -> torch.Tensor:
    """Return (117, X, Y, Z) logits by MONAI's sliding window, called as the published inferer calls it."""
    with torch.inference_mode():
        return sliding_window_inference(
            image[None, None],
            (window,) * 3,
            1,
            network,
            overlap,
            padding_mode="replicate",
            transpose=True,
            class_vector=PROMPTS[:, None],
        )[0]


def our_logits(image: torch.Tensor, segmenter: Vista3D, progress=None) -> torch.Tensor:
    planes = dict(segmenter.mean_features(image, progress))
    axis = int(np.argmax(image.shape))
    assert list(planes) == list(range(image.shape[axis]))
    return torch.stack([segmenter.logits(features) for features in planes.values()], dim=1).movedim(1, 1 + axis)


# Logits and labels


@pytest.mark.parametrize(
    ("shape", "overlap", "windows"),
    [((56, 56, 56), 0.25, 8), ((30, 40, 72), 0.25, 6), ((20, 44, 33), 0.6, 4)],
    ids=["8-windows", "last-axis-longest", "deep-overlap"],
)
def test_averaged_features_are_monais_averaged_logits(network, shape, overlap, windows):
    image, calls = texture(*shape), []
    segmenter = Vista3D(network, window=32, overlap=overlap)
    expected = monai_logits(image, network, 32, overlap)
    ours = our_logits(image, segmenter, lambda done, total: calls.append((done, total)))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert calls == [(n + 1, windows) for n in range(windows)]
    best, second = expected.topk(2, dim=0).values
    tied = (best - second < 1e-4) | (best.abs() < 1e-4)
    reference = torch.where(best > 0, PROMPTS[expected.argmax(dim=0)], 0)
    assert ((best_ids(ours) == reference) | tied).all()
    assert tied.float().mean() < 1e-3
    assert len(reference.unique()) > 20


def test_half_the_memory_gives_the_same_labels(network):
    image = texture(56, 56, 56)
    single, half = (Vista3D(network, window=32, accumulator=name).ids(image) for name in ("float32", "float16"))
    assert (single == half).mean() >= 0.999
    assert next(Vista3D(network, 32, accumulator="float16").mean_features(image))[1].dtype == torch.float16


def test_no_more_planes_are_kept_than_a_window_is_deep(monkeypatch):
    planes: list[weakref.ref] = []
    zeros = torch.zeros

    def watched(*args, **kwargs):
        plane = zeros(*args, **kwargs)
        planes.append(weakref.ref(plane))
        return plane

    segmenter, image = Vista3D(thresholds(0.5), window=32), texture(40, 41, 200)
    monkeypatch.setattr(torch, "zeros", watched)
    alive = [sum(plane() is not None for plane in planes) for _ in segmenter.mean_features(image)]
    assert len(planes) >= 200
    assert 24 <= max(alive) <= 32 + 3  # and the counts of windows along the three axes


def test_a_prompts_logit_does_not_depend_on_its_company(network):
    """Which is why all prompts can be asked for at once, and a class be found by its place."""
    image = texture(32, 32, 32)[None, None]
    with torch.inference_mode():
        every = network(image, class_vector=PROMPTS[:, None])
        some = network(image, class_vector=PROMPTS[[5, 90, 3], None])
        turned = network(image, class_vector=PROMPTS.flip(0)[:, None])
    torch.testing.assert_close(some, every[[5, 90, 3]], atol=4e-6, rtol=0)
    torch.testing.assert_close(turned.flip(0), every, atol=4e-6, rtol=0)
    ours = our_logits(image[0, 0], Vista3D(network, window=32))
    torch.testing.assert_close(ours, every[:, 0], atol=1e-5, rtol=0)


def test_the_largest_positive_logit_names_the_class():
    logits = torch.full((117, 4), -1.0)
    logits[[0, 116, 40], [0, 1, 2]] = 0.5
    logits[41, 2] = 0.6
    assert best_ids(logits).tolist() == [everything_ids()[0], everything_ids()[116], everything_ids()[41], 0]
    assert best_ids(logits).dtype == torch.uint8
    assert best_ids(torch.zeros(117, 1)).tolist() == [0]
    logits[3, 0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        best_ids(logits)


@given(seed=st.integers(0, 2**32 - 1), shift=st.floats(-3, 3))
@settings(max_examples=25, deadline=None)
def test_classes_are_those_of_monais_post_processing(seed, shift):
    logits = torch.randn((117, 4, 3, 2), generator=torch.Generator().manual_seed(seed)) + shift
    ids = best_ids(logits)
    # MONAI's transform writes into what it is given.
    published = VistaPostTransformd("pred")({"pred": logits.clone(), "label_prompt": PROMPTS})["pred"][0]
    assert torch.equal(ids, published.to(torch.uint8))
    assert set(ids.unique().tolist()) <= {0, *everything_ids()}


def test_every_id_has_a_class_of_its_own_among_128():
    classes = granularity_map(128)[list(everything_ids())]
    assert len(set(classes.tolist())) == 117
    assert classes.min() >= 1
    assert classes.max() <= 127


# Geometry


def thresholds(*at: float) -> torch.nn.Module:
    """A network that is no network: class n of `everything_ids` where the image lies above the nth threshold.

    Its logit grows with the threshold, so that the highest one passed wins.
    """
    stub = torch.nn.Module()
    stub.register_parameter("nothing", torch.nn.Parameter(torch.zeros(1)))

    def passed(image, with_point, with_label):
        assert (with_point, with_label) == (False, True)
        return None, torch.cat([torch.where(image > t, n + 1.0, -1.0) for n, t in enumerate(at)], dim=1)

    embedding = torch.nn.Embedding(133, len(at))
    with torch.no_grad():
        embedding.weight.zero_()
        embedding.weight[list(everything_ids())[: len(at)]] = torch.eye(len(at))
    stub.image_encoder = passed
    stub.class_head = SimpleNamespace(
        image_post_mapping=torch.nn.Identity(), class_embeddings=embedding, mlp=torch.nn.Identity()
    )
    return stub


def unit(hu: float) -> float:
    """Return HU as the network sees them."""
    low, high = vista3d.HU_RANGE
    return (hu - low) / (high - low)


def affine(spacing_mm: tuple[float, float, float], axes: str = "LPS", turned_degrees: float = 0.0) -> np.ndarray:
    """Return an affine for (D, H, W) arrays whose W, H and D run to `axes`."""
    out = np.eye(4)
    for column, (letter, length) in enumerate(zip(axes, spacing_mm[::-1], strict=True)):
        row = next(row for row, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        out[:3, column] = 0
        out[row, column] = length * (1 if letter in "RAS" else -1)
    c, s = np.cos(np.radians(turned_degrees)), np.sin(np.radians(turned_degrees))
    turn = np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]])
    return turn @ out + np.array([[0, 0, 0, 10], [0, 0, 0, -20], [0, 0, 0, 30], [0, 0, 0, 0]])


def ball(grid: Grid, centre_mm: np.ndarray, radius_mm: float) -> np.ndarray:
    """Return the distance in mm to a ball's surface (negative inside), (D, H, W)."""
    d, h, w = np.indices(grid.shape)
    at = np.stack([w, h, d], axis=-1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    return np.linalg.norm(at - centre_mm, axis=-1) - radius_mm


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PIR"])
def test_at_the_networks_spacing_labels_come_back_exactly(axes):
    """A bright and a brighter ball, in any orientation of the array: nothing is interpolated."""
    grid = Grid((44, 38, 52), affine((1.5, 1.5, 1.5), axes))
    centre = grid.affine[:3, :3] @ [26, 19, 20] + grid.affine[:3, 3]
    hu = np.full(grid.shape, -1000, np.float32)
    hu[ball(grid, centre, 20) < 0] = 100
    hu[ball(grid, centre + np.array([3, -4, 5]), 7) < 0] = 600
    found = Vista3D(thresholds(unit(0), unit(400)), window=32).segment(hu, grid)
    first, second = everything_ids()[:2]
    np.testing.assert_array_equal(found, np.select([hu > 400, hu > 0], [second, first], 0))
    assert (found.shape, found.dtype) == (grid.shape, np.uint8)


@pytest.mark.parametrize(
    ("spacing_mm", "axes", "turned"),
    [
        ((0.75, 0.7, 0.7), "LPS", 0),
        ((5.0, 0.9, 0.9), "LPS", 0),
        ((2.5, 1.1, 2.0), "IRA", 0),
        ((1.0, 1.3, 1.3), "LPS", 8),
    ],
    ids=["fine", "thick-slices", "turned-axes", "gantry-tilt"],
)
def test_labels_lie_on_their_structure_whatever_the_grid(spacing_mm, axes, turned):
    shape = tuple(round(66 / length) for length in spacing_mm)
    grid = Grid(shape, affine(spacing_mm, axes, turned))
    centre = grid.affine[:3, :3] @ (np.array(shape[::-1]) / 2) + grid.affine[:3, 3]
    distance = ball(grid, centre, 22)
    hu = np.clip(-distance * 100, -1000, 1000).astype(np.float32)  # a ramp: its zero survives interpolation
    found = Vista3D(thresholds(unit(0)), window=48).segment(hu, grid)
    nearest_mm = np.linalg.norm([1.5, 1.5, 1.5]) / 2  # half the diagonal of the network's voxel
    bent_mm = max(spacing_mm) ** 2 / (8 * 22)  # what linear interpolation cuts off a surface of that radius
    sure = np.abs(distance) > nearest_mm + 2 * bent_mm
    np.testing.assert_array_equal((found > 0)[sure], (distance < 0)[sure])
    assert sure.mean() > 0.8


def published(hu: np.ndarray, grid: Grid, network: torch.nn.Module, window: int) -> np.ndarray:
    """Segment by MONAI's transforms and inverse transforms alone, in the order of the bundle's configuration."""
    low, high = vista3d.HU_RANGE
    before = Compose(
        [
            Spacingd("image", (1.5, 1.5, 1.5), mode="bilinear"),
            CropForegroundd("image", source_key="image", allow_smaller=True, margin=10),
            ScaleIntensityRanged("image", low, high, 0, 1, clip=True),
            Orientationd("image", "RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
        ]
    )
    data = before({"image": MetaTensor(torch.from_numpy(hu.transpose(2, 1, 0).copy())[None], affine=grid.affine)})
    data["pred"] = monai_logits(data["image"][0].as_tensor(), network, window).clone()  # written into below
    data["label_prompt"] = PROMPTS
    data = VistaPostTransformd("pred")(data)
    data["pred"] = MetaTensor(data["pred"], affine=data["image"].affine)
    found = Invertd("pred", before, "image", nearest_interp=True, to_tensor=True)(data)["pred"]
    return found[0].numpy().transpose(2, 1, 0).astype(np.uint8)


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "turned"), [((40, 60, 66), (1.5, 1.0, 1.0), 0), ((14, 60, 64), (5.0, 1.2, 1.2), 6)]
)
def test_the_whole_path_is_the_published_one(network, shape, spacing_mm, turned):
    """A body of noise in air, so that cropping has something to crop."""
    grid = Grid(shape, affine(spacing_mm, "LPS", turned))
    hu = np.full(shape, -1000, np.float32)
    body = tuple(slice(size // 3, -size // 5) for size in shape)
    hu[body] = texture(*hu[body].shape).numpy() * 900 - 300
    ours = Vista3D(network, window=32).segment(hu, grid)
    theirs = published(hu, grid, network, 32)
    assert (ours == theirs).mean() > 0.999
    assert len(np.unique(ours)) > 10
    assert (ours == 0).any()


def test_only_the_voxel_size_is_needed_in_canonical_orientation(network):
    hu = (texture(16, 24, 22).numpy() * 1500 - 500).astype(np.float32)
    segmenter = Vista3D(network, window=32)
    placed = segmenter.segment(hu, Grid(hu.shape, affine((2.0, 1.3, 1.4))))
    np.testing.assert_array_equal(segmenter(hu, (2.0, 1.3, 1.4)), placed)


def test_air_alone_has_no_structures():
    hu = np.full((12, 20, 20), -1000, np.float32)
    assert not Vista3D(thresholds(0.0), window=32)(hu, (3.0, 2.0, 2.0)).any()


@pytest.mark.parametrize("wrong", [{"window": 40}, {"window": 16}, {"overlap": 1.0}, {"accumulator": "int8"}])
def test_impossible_settings_are_refused(network, wrong):
    with pytest.raises(UserError, match=f"VISTA3D {next(iter(wrong))}"):
        Vista3D(network, **wrong)


def test_a_loaded_network_does_what_the_saved_one_did(network, checkpoint):
    image = texture(32, 32, 32)
    loaded = Vista3D.load(checkpoint, window=32)
    torch.testing.assert_close(our_logits(image, loaded), our_logits(image, Vista3D(network, window=32)))


@pytest.mark.slow
def test_the_published_size_is_loaded_and_runs(tmp_path):
    """218 M weights of a seed, saved as NVIDIA saves them; a window of 64 voxels."""
    network = random_network(48)
    torch.save(network.state_dict(), tmp_path / "full.pt")
    image = texture(64, 64, 64)
    with torch.inference_mode():
        expected = network(image[None, None], class_vector=PROMPTS[:, None])[:, 0]
    del network
    segmenter = Vista3D.load(tmp_path / "full.pt", window=64)
    assert sum(value.numel() for value in segmenter.network.parameters()) == pytest.approx(217.96e6, abs=5e3)
    torch.testing.assert_close(our_logits(image, segmenter), expected, atol=1e-4, rtol=0)
    assert len(expected.argmax(dim=0).unique()) > 20
