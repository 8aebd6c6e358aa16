import time

import cv2
import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from trace_lightning.anatomy.grid import Grid
from trace_lightning.artifacts import read_volume
from trace_lightning.config import DataConfig
from trace_lightning.data.ct_rate import Scan
from trace_lightning.data.flow import (
    dis_flow,
    identity,
    image_flow,
    mask_flow,
    quality,
    to_pixels_of,
    to_shares,
    volume_mask_flow,
    warp,
)
from trace_lightning.data.preprocess import model_grid
from trace_lightning.errors import UserError


def texture(size: int, seed: int = 0) -> np.ndarray:
    image = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), size / 40, mode="wrap")
    return np.interp(image, (image.min(), image.max()), (0, 255)).astype(np.uint8)


def ellipses(size: int, scale: float) -> np.ndarray:
    """Return a class map of three classes: body 2, lungs 1."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    classes = np.where((y / 0.38) ** 2 + (x / 0.45) ** 2 < 1, 2, 0)
    for side in (-0.18, 0.18):
        classes[(y / 0.24) ** 2 + ((x - side) / 0.12) ** 2 < scale**2] = 1
    return classes.astype(np.uint8)


@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("shift", [(2, 0), (0, -2), (3, 1)])
def test_a_shifted_image_gives_the_shift(size, shift):
    a = texture(size)
    right, down = shift
    b = np.roll(a, (down, right), axis=(0, 1))
    inner = dis_flow(a, b)[:, size // 8 : -size // 8, size // 8 : -size // 8]
    np.testing.assert_allclose(np.median(inner, axis=(1, 2)), [right, down], atol=0.15)
    assert np.abs(inner - np.array(shift)[:, None, None]).mean() < 0.25


@pytest.mark.parametrize(("size", "rest"), [(64, 0.8), (128, 0.4), (256, 0.1)])
def test_warping_the_second_slice_back_gives_the_first(size, rest):
    a, b = (ellipses(size, scale) * 127 for scale in (0.8, 0.9))
    before = np.abs(a.astype(float) - b).mean()
    assert np.abs(a.astype(float) - warp(b, dis_flow(a, b))).mean() < rest * before
    assert np.abs(a.astype(float) - warp(b, -dis_flow(a, b))).mean() > before


def test_equal_slices_do_not_move():
    a = texture(64)
    assert not dis_flow(a, a).any()
    assert not mask_flow(ellipses(64, 0.8), ellipses(64, 0.8), 3).any()


def test_flow_is_deterministic():
    a, b = texture(64), np.roll(texture(64), 2, axis=1)
    first = dis_flow(a, b)
    dis_flow(b, a)
    np.testing.assert_array_equal(dis_flow(a, b), first)


def test_shares_compare_across_resolutions():
    pixels = np.stack([np.full((8, 16), 4.0), np.full((8, 16), 2.0)]).astype(np.float32)
    shares = to_shares(pixels, 4)
    assert shares.shape == (2, 2, 4)
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares, 0.25)
    pixels[0, :4, :4] = np.arange(16).reshape(4, 4)
    assert to_shares(pixels, 4)[0, 0, 0] == pytest.approx(7.5 / 16)
    small, middle, large = (mask_flow(ellipses(n, 0.8), ellipses(n, 0.9), 3, n // 16) for n in (64, 128, 256))
    assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.9
    assert np.corrcoef(middle.ravel(), large.ravel())[0, 1] > 0.95
    assert 0.75 < np.abs(middle).mean() / np.abs(large).mean() < 1.3


@pytest.mark.parametrize("num_classes", [2, 3, 128])
def test_mask_flow_points_outwards_where_a_structure_grows(num_classes):
    small, large = ((ellipses(64, scale) == 1).astype(np.uint8) * (num_classes - 1) for scale in (0.7, 0.9))
    flow = mask_flow(small, large, num_classes, 4)
    assert flow.shape == (2, 16, 16)
    right_edge = flow[0, 6:10, 12:14].mean()  # of the lung whose centre is at 0.68 of the width
    left_edge = flow[0, 6:10, 9:10].mean()
    assert right_edge > 0 > left_edge
    assert np.abs(flow).max() < 0.2


def test_the_flow_of_a_volume_is_that_of_its_neighbours():
    classes = np.stack([ellipses(64, scale) for scale in (0.7, 0.8, 0.9)])
    flow = volume_mask_flow(classes, 3, 4)
    assert flow.shape == (2, 2, 16, 16)
    np.testing.assert_array_equal(flow[1], mask_flow(classes[1], classes[2], 3, 4))
    np.testing.assert_array_equal(flow, volume_mask_flow(classes, 3, 4, threads=3))


def test_a_mask_flow_at_the_phantoms_size_takes_little():
    a, b = ellipses(64, 0.8), ellipses(64, 0.9)
    mask_flow(a, b, 3, 4)
    start = time.process_time()
    for _ in range(20):
        mask_flow(a, b, 3, 4)
    assert (time.process_time() - start) / 20 < 0.01


def test_only_the_phantom_has_exact_motion(tmp_path):
    scan = Scan("train_1_a_1", "train_1", "train", tmp_path / "x.nii.gz", None, None, None)
    data = DataConfig(flow_source="phantom")
    with pytest.raises(UserError, match=r"no exact motion of train_1_a_1; .*data\.flow_source=dis"):
        image_flow(scan, np.zeros((2, 16, 16), np.int16), Grid((2, 16, 16), np.eye(4)), data, tmp_path)


def test_image_flow_is_that_between_windowed_slices(tmp_path):
    scan = Scan("train_1_a_1", "train_1", "train", tmp_path / "x.nii.gz", None, None, None)
    hu = np.interp(np.stack([texture(64), np.roll(texture(64), 2, axis=1)]), (0, 255), (-1000, 1000)).astype(np.int16)
    (pixels,) = image_flow(scan, hu, Grid(hu.shape, np.eye(4)), DataConfig(flow_source="dis"), tmp_path)([(0, 1)])
    np.testing.assert_allclose(np.median(pixels, axis=(1, 2)), [2, 0], atol=0.1)


def test_warping_is_opencvs():
    image, flow = texture(64), np.random.default_rng(1).normal(0, 2, (2, 64, 64)).astype(np.float32)
    y, x = np.mgrid[:64, :64].astype(np.float32)
    border = {"borderMode": cv2.BORDER_REPLICATE}
    expected = cv2.remap(image.astype(np.float32), x + flow[0], y + flow[1], cv2.INTER_LINEAR, **border)
    np.testing.assert_allclose(warp(image.astype(np.float32), flow), expected, atol=6)  # OpenCV counts in 1/32 pixel
    assert np.abs(warp(image.astype(np.float32), flow) - expected).mean() < 0.3


def test_quality_tells_flows_that_undo_each_other_from_others():
    there = np.stack([np.full((32, 32), 2.0), np.full((32, 32), -1.0)]).astype(np.float32)

    def moves(back):
        return lambda pairs: (there if i < j else back for i, j in pairs)

    every = [(i, i + 1) for i in range(20)]
    assert quality(moves(-there), every) == {"pairs_checked": 8, "error_pixels": 0.0, "consistent_percent": 100.0}
    assert quality(moves(there), every[:3]) == {
        "pairs_checked": 3, "error_pixels": pytest.approx(2 * 5**0.5, abs=1e-3), "consistent_percent": 0.0,
    }  # fmt: skip
    half = -there.copy()
    half[:, :16] *= -1
    assert 40 < quality(moves(half), every)["consistent_percent"] < 60


@pytest.fixture
def fine_scan(tmp_path, monkeypatch):
    """A scan of 128 x 128 pixels of 2 mm whose slices move by (+4, -2) pixels each; no chest, so read as it is."""
    monkeypatch.setattr("trace_lightning.data.flow.read_scan", lambda scan, repair=False: read_volume(scan.path))
    first = np.interp(texture(128), (0, 255), (-1000, 1000))
    hu = np.stack([np.roll(first, (-2 * n, 4 * n), axis=(0, 1)) for n in range(4)])
    affine = np.array([[-2.0, 0, 0, 100], [0, -2.0, 0, 120], [0, 0, 3.0, -50], [0, 0, 0, 1]])
    path = tmp_path / "x.nii.gz"
    nib.save(nib.Nifti1Image(np.transpose(hu, (2, 1, 0)).astype(np.float32), affine), path)
    return Scan("train_1_a_1", "train_1", "train", path, None, None, None), Grid(hu.shape, affine)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [({"size": 32}, (1, -0.5)), ({"size": 64, "in_plane": "resample", "spacing_mm": 1.0}, (8, -4)), ({}, (8, -4))],
    ids=["coarser", "cropped", "finer"],
)
def test_flow_at_the_original_resolution_is_in_the_models_pixels(fine_scan, keys, expected, tmp_path):
    scan, own = fine_scan
    data = DataConfig(flow_resolution="original", **keys)
    grid = model_grid(own, data)
    nothing = np.zeros(grid.shape, np.int16)  # the model's own slices are not looked at
    (flow,) = image_flow(scan, nothing, grid, data, tmp_path)([(0, 1)])
    assert flow.shape == (2, *grid.shape[1:])
    np.testing.assert_allclose(np.median(flow, axis=(1, 2)), expected, rtol=0.05)


def test_flow_is_carried_to_where_it_belongs():
    own = Grid((2, 40, 60), np.array([[-2.0, 0, 0, 10], [0, -2.0, 0, 20], [0, 0, 3.0, 0], [0, 0, 0, 1]]))
    y, x = np.mgrid[:40, :60].astype(np.float32)
    flow = np.stack([0.1 * x, 0.2 * y])
    grid = own.resized((2, 20, 20))  # half as many pixels down, a third across
    at_y, at_x = np.mgrid[:20, :20]
    carried = to_pixels_of(grid, flow, own)[:, 2:-2, 2:-2]
    expected = np.stack([0.1 * (3 * at_x + 1) / 3, 0.2 * (2 * at_y + 0.5) / 2])[:, 2:-2, 2:-2]
    np.testing.assert_allclose(carried, expected, atol=1e-4)
    moved = Grid(own.shape, own.affine + np.array([[0, 0, 0, -1000.0], [0] * 4, [0] * 4, [0] * 4]))
    assert not to_pixels_of(moved, flow, own).any()  # outside the field of view
    assert to_pixels_of(own, flow, own) is flow


def test_the_identity_leaves_out_what_a_source_does_not_read():
    assert identity(DataConfig(flow_source="phantom")) == identity(
        DataConfig(flow_source="phantom", flow_resolution="original", flow_model="raft_small")
    )
    assert identity(DataConfig()) == identity(DataConfig(flow_model="raft_small"))
    assert identity(DataConfig()) != identity(DataConfig(flow_resolution="original"))
