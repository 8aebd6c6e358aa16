import time

import cv2
import numpy as np
import pytest
from scipy import ndimage

from trace_lightning.anatomy.grid import Grid
from trace_lightning.config import DataConfig
from trace_lightning.data.ct_rate import Scan
from trace_lightning.data.flow import dis_flow, image_flow, mask_flow, to_shares, volume_mask_flow
from trace_lightning.errors import UserError


def texture(size: int, seed: int = 0) -> np.ndarray:
    image = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), size / 40, mode="wrap")
    return np.interp(image, (image.min(), image.max()), (0, 255)).astype(np.uint8)


def warp(image: np.ndarray, flow_pixels: np.ndarray) -> np.ndarray:
    """Return image(p + f(p))."""
    height, width = image.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return cv2.remap(image, x + flow_pixels[0], y + flow_pixels[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


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


def test_a_mask_flow_at_the_phantoms_size_takes_little():
    a, b = ellipses(64, 0.8), ellipses(64, 0.9)
    mask_flow(a, b, 3, 4)
    start = time.perf_counter()
    for _ in range(20):
        mask_flow(a, b, 3, 4)
    assert (time.perf_counter() - start) / 20 < 0.01


def test_only_the_phantom_has_exact_motion(tmp_path):
    scan = Scan("train_1_a_1", "train_1", "train", tmp_path / "x.nii.gz", None, None, None)
    data = DataConfig(flow_source="phantom")
    with pytest.raises(UserError, match=r"no exact motion of train_1_a_1; .*data\.flow_source=dis"):
        image_flow(scan, np.zeros((2, 16, 16), np.int16), Grid((2, 16, 16), np.eye(4)), data, tmp_path)


def test_image_flow_is_that_between_windowed_slices(tmp_path):
    scan = Scan("train_1_a_1", "train_1", "train", tmp_path / "x.nii.gz", None, None, None)
    hu = np.interp(np.stack([texture(64), np.roll(texture(64), 2, axis=1)]), (0, 255), (-1000, 1000)).astype(np.int16)
    pixels = image_flow(scan, hu, Grid(hu.shape, np.eye(4)), DataConfig(flow_source="dis"), tmp_path)(0, 1)
    np.testing.assert_allclose(np.median(pixels, axis=(1, 2)), [2, 0], atol=0.1)
