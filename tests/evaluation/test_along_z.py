import itertools

import cv2
import numpy as np
import pytest
from toy_chest import chest

from evaluation.along_z import (
    body_means_hu,
    correlation,
    differences_hu,
    drift_hu,
    grey,
    jerk_hu,
    temporal_flickering,
    texture_hu,
)


def vbench_flickering(frames):
    """The published formula, frame by frame, on grey replicated to three channels."""
    colour = [cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR) for frame in frames]
    steps = [np.mean(cv2.absdiff(a, b)) for a, b in itertools.pairwise(colour)]
    return (255.0 - np.mean(steps)) / 255.0


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (np.full((5, 4, 4), 77), 1.0),
        (np.arange(6)[:, None, None] % 2 * 255 * np.ones((6, 4, 4)), 0.0),
        (np.arange(6)[:, None, None] * np.ones((6, 4, 4)), 254 / 255),
    ],
)
def test_flickering_by_hand(frames, expected):
    assert temporal_flickering(frames.astype(np.uint8)) == pytest.approx(expected)


def test_flickering_of_independent_frames():
    frames = np.random.default_rng(0).integers(0, 256, (40, 64, 64), dtype=np.uint8)
    assert temporal_flickering(frames) == pytest.approx(1 - (256**2 - 1) / (3 * 256 * 255), abs=1e-3)


def test_flickering_is_vbench_s():
    frames = grey(chest(3)[0].hu)
    assert temporal_flickering(frames) == pytest.approx(vbench_flickering(frames), abs=1e-9)


def test_flickering_needs_two_frames():
    with pytest.raises(ValueError, match="two frames"):
        temporal_flickering(np.zeros((1, 4, 4), np.uint8))


def test_grey_levels():
    hu = np.array([-3000.0, -1000.0, -998.0, -996.0, 996.0, 1000.0, 5000.0])
    assert grey(hu).tolist() == [0, 0, 0, 1, 254, 255, 255]


def test_differences_tell_borders_from_pairs():
    levels = np.array([0, 10, 110, 130, 230, 260], np.float32)  # within 10, 20, 30; across borders 100, 100
    hu = levels[:, None, None] * np.ones((6, 3, 3), np.float32)
    found = differences_hu(hu)
    assert found["within_difference_hu"] == pytest.approx(20)
    assert found["border_difference_hu"] == pytest.approx(100)
    assert found["adjacent_difference_hu"] == pytest.approx(52)
    assert found["seam_ratio"] == pytest.approx(5)


def test_differences_of_odd_and_short_volumes():
    hu = np.array([0, 10, 110], np.float32)[:, None, None] * np.ones((3, 2, 2), np.float32)
    assert differences_hu(hu)["border_difference_hu"] == pytest.approx(100)
    short = differences_hu(hu[:2])
    assert short["border_difference_hu"] is None
    assert short["seam_ratio"] is None


def test_differences_are_taken_inside_the_window():
    hu = np.array([-2048, -1000, 3000, 1000], np.float32)[:, None, None] * np.ones((4, 2, 2), np.float32)
    assert differences_hu(hu)["within_difference_hu"] == 0


def test_correlation_against_numpy():
    rng = np.random.default_rng(0)
    hu = np.cumsum(rng.normal(0, 40, (5, 12, 12)), axis=0) - 500
    lung = rng.random((5, 12, 12)) > 0.3
    lung[4] = False
    expected = []
    for z in range(3):
        both = lung[z] & lung[z + 1]
        expected.append(np.corrcoef(hu[z][both], hu[z + 1][both])[0, 1])
    assert correlation(hu, lung) == pytest.approx(np.mean(expected), abs=1e-6)


def test_correlation_of_known_slices():
    plane = np.random.default_rng(1).normal(-800, 50, (10, 10))
    lung = np.ones((3, 10, 10), bool)
    assert correlation(np.stack([plane] * 3), lung) == pytest.approx(1)
    assert correlation(np.stack([plane, -1600 - plane, plane]), lung) == pytest.approx(-1)
    assert correlation(np.full((3, 10, 10), -800.0), lung) is None
    assert correlation(np.stack([plane] * 3), np.zeros_like(lung)) is None


def test_correlation_ignores_what_lies_outside_the_lung():
    rng = np.random.default_rng(2)
    hu = rng.normal(-800, 50, (4, 16, 16))
    lung = np.zeros(hu.shape, bool)
    lung[:, 4:12, 4:12] = True
    other = np.where(lung, hu, rng.normal(0, 500, hu.shape))
    assert correlation(other, lung) == pytest.approx(correlation(hu, lung))


def test_texture_recovers_planted_noise_under_a_gradient():
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 40, (6, 64, 64))
    gradient = np.linspace(-880, -820, 64)[None, None, :] + np.linspace(-40, 40, 6)[:, None, None]
    lung = np.zeros(noise.shape, bool)
    lung[:, 8:56, 8:56] = True
    found = texture_hu(gradient + noise, lung, (5.0, 1.0, 1.0))
    assert found == pytest.approx(40, rel=0.02)
    assert (gradient + noise)[lung].std() > 45


def test_texture_falls_with_blur_and_ignores_the_chest_wall():
    from scipy import ndimage

    volume, labels = chest(4)
    lung = labels == 20
    sharp = texture_hu(volume.hu, lung, volume.grid.spacing_mm)
    inside = np.where(lung, volume.hu, volume.hu[lung].mean())
    assert texture_hu(inside, lung, volume.grid.spacing_mm) == pytest.approx(sharp)
    blurred = ndimage.gaussian_filter(inside, (0, 1, 1))
    assert texture_hu(blurred, lung, volume.grid.spacing_mm) < 0.7 * sharp
    assert texture_hu(volume.hu, np.zeros_like(lung), volume.grid.spacing_mm) is None


def column(levels, side=5):
    return np.asarray(levels, np.float32)[:, None, None] * np.ones((len(levels), side, side), np.float32)


def test_jerk_by_hand():
    body = np.ones((6, 5, 5), bool)
    cubic = [n**3 for n in range(6)]  # third difference 6 everywhere
    assert jerk_hu(column(cubic), body) == pytest.approx(6)
    assert jerk_hu(column([7 * n**2 - 40 * n for n in range(6)]), body) == pytest.approx(0)
    assert jerk_hu(column([0, 10, 0, 10, 0, 10]), body) == pytest.approx(40)
    part = body.copy()
    part[5] = False
    assert jerk_hu(column([*cubic[:5], 900]), part) == pytest.approx(6)
    assert jerk_hu(column(cubic[:3]), body[:3]) is None
    assert jerk_hu(column(cubic), np.zeros_like(body)) is None


def test_jerk_against_numpy():
    rng = np.random.default_rng(5)
    hu, body = rng.normal(0, 200, (9, 12, 12)), rng.random((9, 12, 12)) > 0.2
    inside = np.lib.stride_tricks.sliding_window_view(body, 4, axis=0).all(axis=-1)
    expected = np.abs(np.diff(np.clip(hu, -1000, 1000), 3, axis=0))[inside].mean()
    assert jerk_hu(hu, body) == pytest.approx(expected, rel=1e-5)


def test_body_means_by_hand():
    hu = column([10, 20, 30])
    hu[:, 0] = -1000
    body = hu > -500
    body[2] = False
    found = body_means_hu(hu, body)
    assert found[:2].tolist() == [10, 20]
    assert np.isnan(found[2])


def test_drift_by_hand():
    real = np.array([50.0, 60, 70, 80, 90])
    found = drift_hu(real + np.arange(0, 25, 5), real, 2.0)
    assert found["z_slope_hu_real"] == pytest.approx(500)  # 10 HU in 2 mm
    assert found["z_slope_hu"] == pytest.approx(750)
    assert found["drift_hu"] == pytest.approx(250)
    assert found["drift_range_hu"] == pytest.approx(20)
    falling = drift_hu(real - np.arange(0, 25, 5), real, 2.0)
    assert falling["drift_hu"] == pytest.approx(250)  # its size
    wave = drift_hu(real + np.array([3, -3, 3, -3, 3]), real, 2.0)
    assert (wave["drift_hu"], wave["drift_range_hu"]) == (pytest.approx(0), pytest.approx(6))
    gaps = drift_hu(np.array([np.nan, 65, np.nan, 95, np.nan]), real, 2.0)  # 5 above at 2 mm, 15 above at 6 mm
    assert gaps["drift_hu"] == pytest.approx(250)
    assert drift_hu(np.array([1.0, np.nan]), np.array([1.0, 1.0]), 2.0)["drift_hu"] is None


def test_correlation_at_a_lag():
    rng = np.random.default_rng(6)
    planes = rng.normal(-800, 50, (4, 12, 12))
    hu = np.concatenate([planes, planes, planes])
    lung = np.ones(hu.shape, bool)
    assert correlation(hu, lung, lag=4) == pytest.approx(1)
    assert abs(correlation(hu, lung, lag=1)) < 0.2
    assert correlation(hu[:4], lung[:4], lag=4) is None
