import os
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from trace_lightning.anatomy.labels import BONE, LUNG
from trace_lightning.anatomy.threshold import segment
from trace_lightning.artifacts import read_labels, read_volume

MINI = Path(os.environ.get("TRACE_DATA", "absent")) / "ct_rate_mini"
real_ct = [pytest.mark.real_ct, pytest.mark.skipif(not MINI.is_dir(), reason="TRACE_DATA holds no ct_rate_mini")]


def thorax(shape=(40, 64, 64), spacing=(6.0, 5.5, 5.5)):
    """A body of water with two lungs, a gas bubble, a spine and a couch beneath, and the labels that are expected."""
    z, y, x = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"
    )
    hu, labels = np.full(shape, -1000.0, np.float32), np.zeros(shape, np.uint8)
    hu[(x / 150) ** 2 + (y / 105) ** 2 < 1] = 40
    for side in (-1, 1):
        lung = ((x - side * 70) / 50) ** 2 + (y / 75) ** 2 + ((z - 15) / 85) ** 2 < 1
        hu[lung], labels[lung] = -850, LUNG
    hu[(x - 40) ** 2 + (y + 40) ** 2 + (z + 100) ** 2 < 22**2] = -1000  # gas in the stomach
    spine = x**2 + (y - 75) ** 2 < 18**2
    hu[spine], labels[spine] = 500, BONE
    hu[(np.abs(y - 118) < 3) & (np.abs(x) < 170)] = 0  # the couch, a sheet, 7 mm away
    return hu, labels


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def check(found, expected, least=0.95):
    for label in (LUNG, BONE):
        assert dice(found == label, expected == label) > least, label


def test_a_thorax():
    hu, expected = thorax()
    found = segment(hu, (6.0, 5.5, 5.5))
    assert found.dtype == np.uint8
    assert set(np.unique(found)) == {0, LUNG, BONE}
    check(found, expected)
    gas = (hu == -1000) & (found == LUNG)
    assert gas.sum() == 0


@pytest.mark.parametrize("spacing", [(3.0, 2.0, 2.0), (8.0, 2.0, 3.0)])
def test_other_voxels(spacing):
    shape = tuple(round(extent / s) for extent, s in zip((240, 352, 352), spacing, strict=True))
    hu, expected = thorax(shape, spacing)
    check(segment(hu, spacing), expected)


CUTS = {
    "left half": np.s_[:, :, 32:],
    "right half": np.s_[:, :, :32],
    "through the left lung": np.s_[:, :, 42:],
    "through the right lung": np.s_[:, :, :22],
    "through the front of both": np.s_[:, 24:],
    "some slices": np.s_[5:20],
    "no air around": np.s_[:, 14:-14, 5:-5],
}


@pytest.mark.parametrize("name", CUTS)
def test_a_cropped_thorax(name):
    hu, expected = thorax()
    found, expected = segment(hu[CUTS[name]], (6.0, 5.5, 5.5)), expected[CUTS[name]]
    assert dice(found == LUNG, expected == LUNG) > 0.93
    if (expected == BONE).any():
        assert dice(found == BONE, expected == BONE) > 0.9


def test_padding_is_neither_air_nor_tissue():
    hu, expected = thorax()
    _, y, x = np.ogrid[:40, :64, :64]
    outside = np.broadcast_to((y - 31.5) ** 2 + (x - 31.5) ** 2 > 30**2, hu.shape)
    found = segment(np.where(outside, -2048, hu).astype(np.float32), (6.0, 5.5, 5.5))
    assert not found[outside & (expected == 0)].any()
    assert dice(found == LUNG, expected == LUNG) > 0.95


@pytest.mark.parametrize(("sigma", "noise"), [(0.7, 0), (0, 60), (0.7, 60), (1.0, 30)])
def test_blur_and_noise_as_generators_make_them(sigma, noise):
    hu, expected = thorax()
    hu = ndimage.gaussian_filter(hu, sigma) + np.random.default_rng(0).normal(0, noise, hu.shape)
    found = segment(np.clip(hu, -1000, 1000).astype(np.float32), (6.0, 5.5, 5.5))
    assert dice(found == LUNG, expected == LUNG) > 0.9
    assert dice(found == BONE, expected == BONE) > 0.8


def test_small_vessels_belong_to_the_lung_and_large_ones_do_not():
    hu, expected = thorax((80, 176, 176), (3.0, 2.0, 2.0))
    hu[:, 84:86, 120:122] = np.where(expected[:, 84:86, 120:122] == LUNG, 40, hu[:, 84:86, 120:122])
    hu[:, 70:84, 124:138] = np.where(expected[:, 70:84, 124:138] == LUNG, 40, hu[:, 70:84, 124:138])
    found = segment(hu, (3.0, 2.0, 2.0))
    assert found[45, 85, 121] == LUNG
    assert found[45, 77, 131] == 0


def test_noise_alone_makes_no_bone():
    rng = np.random.default_rng(1)
    hu, expected = thorax((60, 128, 128), (4.0, 2.75, 2.75))
    hu = np.where(expected == BONE, 40, hu) + rng.normal(0, 50, hu.shape)
    assert (segment(hu.astype(np.float32), (4.0, 2.75, 2.75)) == BONE).mean() < 1e-4


@pytest.mark.parametrize("value", [-1000.0, -2048.0, 40.0, 1000.0])
def test_volumes_without_anatomy(value):
    found = segment(np.full((6, 20, 20), value, np.float32), (5.0, 5.0, 5.0))
    assert not (found == LUNG).any()
    assert (found == BONE).all() == (value > 200)


def test_pure_noise_does_not_crash():
    hu = np.random.default_rng(2).uniform(-1000, 1000, (12, 32, 32)).astype(np.float32)
    assert segment(hu, (5.0, 5.0, 5.0)).shape == hu.shape


def test_the_input_is_left_alone():
    hu, _ = thorax()
    before = hu.copy()
    segment(hu, (6.0, 5.5, 5.5))
    assert np.array_equal(hu, before)


def test_flips_do_not_matter():
    hu, _ = thorax()
    found = segment(hu, (6.0, 5.5, 5.5))
    for axes in (0, 1, 2, (1, 2)):
        flipped = np.ascontiguousarray(np.flip(hu, axes))
        assert dice(np.flip(segment(flipped, (6.0, 5.5, 5.5)), axes) == LUNG, found == LUNG) > 0.999


def test_is_fast():
    hu, _ = thorax()
    segment(hu, (6.0, 5.5, 5.5))
    started = time.process_time()
    for _ in range(3):
        segment(hu, (6.0, 5.5, 5.5))
    assert (time.process_time() - started) / 3 < 0.2  # about 0.03 on an idle core


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=real_ct) for name in ("train_2_a_1", "train_3_a_1", "train_3_b_1")]
)
def test_expert_lungs(name):
    scan = read_volume(next(path for path in (MINI / "dataset" / "train_fixed").rglob(f"{name}.nii.gz")))
    expert, grid = read_labels(MINI / "annotations" / f"{name}_lungs.nii.gz")
    assert grid.equals(scan.grid, tolerance_mm=0.01)
    found = dice(segment(scan.hu, scan.grid.spacing_mm) == LUNG, expert > 0)
    print(f"\n{name}: Dice {found:.4f}")
    assert found >= 0.95


@pytest.mark.parametrize("name", [pytest.param(name, marks=real_ct) for name in ("train_1_a_1", "valid_1_a_1")])
def test_the_couch_encloses_no_lung(name):
    scan = read_volume(next(path for path in (MINI / "dataset").rglob(f"{name}.nii.gz") if "_fixed" in str(path)))
    found = segment(scan.hu, scan.grid.spacing_mm)
    voxel_ml = np.prod(scan.grid.spacing_mm) / 1000
    assert 2000 < (found == LUNG).sum() * voxel_ml < 7000
    assert 300 < (found == BONE).sum() * voxel_ml < 1500
    assert scan.hu[found == LUNG].mean() < -700
