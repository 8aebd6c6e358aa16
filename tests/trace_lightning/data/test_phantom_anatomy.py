"""Is the phantom a chest? HU, volumes, neighbourhood, variety and smoothness, measured on rendered volumes."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from trace_lightning.anatomy.grid import Grid
from trace_lightning.anatomy.labels import group_ids, supported_ids
from trace_lightning.config import PhantomConfig
from trace_lightning.data.phantom.anatomy import Anatomy
from trace_lightning.data.phantom.motion import motion_of, pair_flow
from trace_lightning.data.phantom.render import axes_mm, render
from trace_lightning.data.phantom.scan import Scan

CONFIG = PhantomConfig(size=64, spacing_z_mm=[7.0, 8.0])
NUM_CASES = 10


@cache
def case(number):
    """Return (scan, hu, labels) of a patient."""
    scan = Scan(CONFIG, "train", number)
    return scan, *scan.render()


@cache
def healthy():
    """Return a volume of one patient without findings at 2.8 mm: (scan, hu, labels)."""
    scan = Scan(replace(CONFIG, size=128, spacing_z_mm=[4.0]), "train", 4)
    anatomy = Anatomy(scan.patient, (), scan.stream("placement"))
    return scan, *render(anatomy, scan.grid, "B", (0, 0, 4, 5))


def everyone():
    return [case(number) for number in range(1, NUM_CASES + 1)]


def masks(labels):
    return {group: np.isin(labels, group_ids(group)) for group in ("lung", "bone")}


def threshold(hu):
    """Segment a volume by thresholds, as someone without the mask would."""
    parts, _ = ndimage.label(hu > -500)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    body = np.stack([ndimage.binary_fill_holes(image) for image in parts == sizes.argmax()])
    return {"lung": (hu < -400) & body, "bone": (hu > 200) & body}


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize(
    ("ids", "low", "high"),
    [
        ((28, 29, 30, 31, 32), -900, -760),
        ((1,), 30, 70),
        ((3,), 35, 60),
        ((5, 14), 0, 45),
        ((6,), 25, 60),
        ((11,), 0, 60),
        ((57,), -1000, -850),
        ((115,), 25, 60),
        (tuple(range(38, 50)), 300, 600),
        (tuple(range(64, 73)), 350, 800),
        ((114,), 60, 350),
        ((121,), 20, 60),
        ((122,), 350, 800),
        ((125,), 20, 60),
    ],
)
def test_hu_of_organs(ids, low, high):
    _, hu, labels = healthy()
    inside = ndimage.binary_erosion(np.isin(labels, ids), np.ones((1, 2, 2)))
    assert inside.sum() > 20
    assert low < hu[inside].mean() < high


def test_fat_muscle_and_air_are_rendered_but_unlabelled():
    _, hu, labels = healthy()
    unlabelled = labels == 0
    assert (hu[unlabelled] < -950).mean() > 0.3
    assert ((hu > -130) & (hu < -70) & unlabelled).sum() > 5000
    assert ((hu > 30) & (hu < 70) & unlabelled).sum() > 5000
    assert hu.dtype == np.int16 and hu.min() >= -1024


def test_air_beside_the_body_is_minus_1000():
    _, hu, _ = healthy()
    assert np.median(hu[:, :4, :]) == pytest.approx(-1000, abs=3)


@pytest.mark.parametrize(
    ("ids", "low_ml", "high_ml"),
    [
        ((28, 29, 30, 31, 32), 1300, 7500),
        ((115,), 250, 1500),
        ((6,), 80, 600),
        ((57,), 20, 80),
        ((1,), 150, 2200),
        (tuple(range(63, 87)), 250, 750),
        (tuple(range(38, 50)), 250, 600),
        ((122,), 40, 130),
        ((121,), 15, 60),
    ],
)
def test_volumes_of_organs(ids, low_ml, high_ml):
    for scan, _, labels in everyone():
        ml = np.isin(labels, ids).sum() * np.prod(scan.grid.spacing_mm) / 1000
        assert low_ml < ml < high_ml, scan.case_id


def test_at_least_thirty_structures():
    for scan, _, labels in everyone():
        found = set(np.unique(labels)) - {0}
        assert len(found) >= 60, scan.case_id
        assert found <= set(supported_ids())
        assert {28, 29, 30, 31, 32, 57, 115, 6, 125, 7, 11, 121, 1, 3, 12, 122, 89, 90, 91, 92, 114} <= found


def test_no_muscle_is_labelled():
    for _, _, labels in everyone():
        assert not np.isin(labels, group_ids("muscle")).any()


def centre(labels, *ids):
    return np.argwhere(np.isin(labels, ids)).mean(0)


def test_neighbourhood():
    """Axes: D to the head, H to the back, W to the left."""
    for scan, _, labels in everyone():
        heart, right, left = centre(labels, 115), centre(labels, 30, 31, 32), centre(labels, 28, 29)
        spine, sternum = centre(labels, *range(38, 50)), centre(labels, 122)
        assert right[2] < heart[2] < left[2], scan.case_id
        assert heart[2] > spine[2], f"{scan.case_id}: the heart lies left of the midline"
        assert sternum[1] < heart[1] < spine[1]
        liver, spleen = centre(labels, 1), centre(labels, 3)
        assert liver[0] < right[0] and liver[2] < spleen[2]
        assert centre(labels, 48)[0] > centre(labels, 44)[0] > centre(labels, 40)[0]
        assert centre(labels, 121)[1] > spine[1] - 1


def test_liver_lies_under_the_right_lung():
    for _, _, labels in everyone():
        lung = np.isin(labels, (30, 31, 32)).any(0)
        both = np.argwhere(lung & (labels == 1).any(0))
        assert len(both) > 20
        above = [
            (labels[:, h, w] == 1).nonzero()[0].max() <= np.isin(labels[:, h, w], (30, 31, 32)).nonzero()[0].max()
            for h, w in both
        ]
        assert np.mean(above) > 0.9


@pytest.mark.parametrize(
    ("left", "right"), [(range(63, 75), range(75, 87)), ((89,), (90,)), ((91,), (92,)), ((28, 29), (30, 31, 32))]
)
def test_sides(left, right):
    for _, _, labels in everyone():
        assert centre(labels, *left)[2] > centre(labels, *right)[2] + 5


def test_lobes_lie_in_order():
    for _, _, labels in everyone():
        assert centre(labels, 28)[0] > centre(labels, 29)[0]
        assert centre(labels, 30)[0] > centre(labels, 31)[0] and centre(labels, 30)[0] > centre(labels, 32)[0]
        assert centre(labels, 31)[1] < centre(labels, 32)[1], "the middle lobe lies in front"


def test_a_slice_cuts_several_ribs():
    _, _, labels = healthy()
    cuts = [len(set(np.unique(s)) & set(range(63, 87))) for s in labels]
    assert np.median(cuts[len(cuts) // 3 : 2 * len(cuts) // 3]) >= 6


def test_patients_differ_and_masks_can_be_recovered():
    """Ceiling: thresholds on the rendered volume against the exact mask. Chance: another patient's mask at that z."""
    exact = [masks(labels) for _, _, labels in everyone()]
    found = [threshold(hu) for _, hu, _ in everyone()]
    for group, least_ceiling, most_chance in (("lung", 0.9, 0.65), ("bone", 0.8, 0.5)):
        ceiling = np.mean([dice(a[group], b[group]) for a, b in zip(exact, found, strict=True)])
        chance = []
        for a in exact:
            for b in exact:
                if a is not b:
                    depth, other = len(a[group]), len(b[group])
                    same_z = ((np.arange(depth) + 0.5) / depth * other).astype(int)
                    chance.append(dice(a[group], b[group][same_z]))
        assert ceiling >= least_ceiling, group
        assert np.mean(chance) <= most_chance, group
        assert ceiling - np.mean(chance) >= 0.3, group


def test_smooth_along_z():
    for scan, hu, _ in everyone():
        steps = np.abs(np.diff(np.clip(hu, -1000, 1000).astype(float), axis=0)).mean((1, 2))
        assert steps.max() < 3 * np.median(steps), scan.case_id


def test_coarse_and_fine_grids_show_the_same_anatomy():
    """Geometry is apart from rendering: a volume of finer pixels, averaged, is the coarse one up to noise."""
    scan = Scan(CONFIG, "train", 2)
    fine = scan.grid.resized((scan.grid.shape[0], 128, 128))
    hu, _ = render(scan.anatomy, fine, "B", (1, 2, 3, 4))
    averaged = hu.reshape(hu.shape[0], 64, 2, 64, 2).mean((2, 4))
    coarse = case(2)[1].astype(float)
    assert np.abs(averaged - coarse).mean() < 25
    assert np.corrcoef(averaged.ravel(), coarse.ravel())[0, 1] > 0.99


def test_blocks_do_not_change_the_volume(monkeypatch):
    scan, hu, labels = case(1)
    monkeypatch.setattr("trace_lightning.data.phantom.render.BLOCK_POINTS", 4 * 64 * 64 * 3)
    again, again_labels = scan.render()
    assert np.array_equal(labels, again_labels)
    assert np.array_equal(hu, again)


def test_kernels_differ_in_noise():
    scan = Scan(replace(CONFIG, size=256, spacing_z_mm=[20.0]), "train", 4)
    liver = {}
    for kernel in ("B", "L"):
        hu, labels = render(scan.anatomy, scan.grid, kernel, (0, 0, 4, 5))
        inside = ndimage.binary_erosion(labels == 1, np.ones((1, 5, 5)))
        liver[kernel] = hu[inside].std()
    assert liver["L"] > 1.3 * liver["B"]


def test_same_seed_same_patient_and_other_seed_another():
    scan, hu, labels = case(3)
    again, again_labels = Scan(CONFIG, "train", 3).render()
    assert np.array_equal(hu, again) and np.array_equal(labels, again_labels)
    for other in (Scan(replace(CONFIG, seed=1), "train", 3), Scan(CONFIG, "valid", 3)):
        assert other.patient != scan.patient


def test_flow_carries_the_anatomy():
    """Labels of slice i + k, pulled back by the flow, resemble slice i more than they do unmoved."""
    gains = []
    for scan, _, labels in everyone():
        motion = motion_of(scan.anatomy.cage.frame, axes_mm(scan.grid)[2])
        body = masks(labels)
        for group, k in (("lung", 1), ("lung", 4), ("bone", 4)):
            for i in range(0, len(labels) - k, 3):
                near, far = body[group][i], body[group][i + k]
                if near.sum() < 40 or far.sum() < 40:
                    continue
                dx, dy = pair_flow(motion, scan.grid, i, i + k)
                h, w = np.mgrid[:64, :64]
                warped = ndimage.map_coordinates(far.astype(float), [h + dy, w + dx], order=1) > 0.5
                gains.append(dice(near, warped) - dice(near, far))
    assert len(gains) > 100
    assert np.mean(gains) > 0.01


def test_flow_is_in_pixels_of_the_grid_it_is_asked_for():
    scan, _, labels = case(1)
    motion = motion_of(scan.anatomy.cage.frame, axes_mm(scan.grid)[2])
    depth = len(labels)
    coarse, fine = (pair_flow(motion, scan.grid.resized((depth, n, n)), 5, 9) for n in (32, 128))
    assert coarse.shape == (2, 32, 32) and fine.dtype == np.float32
    pooled = fine.reshape(2, 32, 4, 32, 4).mean((2, 4)) / 4
    assert np.allclose(coarse, pooled, atol=1e-4)
    assert not pair_flow(motion, scan.grid, 7, 7).any()
    there, back = pair_flow(motion, scan.grid, 4, 8), pair_flow(motion, scan.grid, 8, 4)
    assert np.corrcoef(there.ravel(), -back.ravel())[0, 1] > 0.95


def test_positions_follow_the_affine():
    grid = Grid((3, 4, 5), np.array([[-2.0, 0, 0, 10], [0, -3, 0, 20], [0, 0, 4, -7], [0, 0, 0, 1]]))
    x, y, z = axes_mm(grid)
    assert x.tolist() == [-10, -8, -6, -4, -2]
    assert y.tolist() == [-20, -17, -14, -11]
    assert z.tolist() == [-7, -3, 1]
