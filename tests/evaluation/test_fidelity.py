import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import directed_hausdorff

from evaluation.fidelity import (
    bounded,
    bounding_box,
    hausdorff_mm,
    joint_histogram,
    overlaps,
    summed_up,
    surfaces_by_label,
)

ISOTROPIC = (1.0, 1.0, 1.0)


def cube(start, side=8, size=24):
    mask = np.zeros((size,) * 3, bool)
    mask[start : start + side, 8:16, 8:16] = True
    return mask


def ball(radius, size=64):
    z, y, x = np.ogrid[:size, :size, :size]
    centre = size // 2
    return (z - centre) ** 2 + (y - centre) ** 2 + (x - centre) ** 2 <= radius**2


def blobs(seed, classes=4, shape=(18, 24, 21)):
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.normal(size=shape), 2.0) for _ in range(classes)]
    return np.argmax(fields, axis=0).astype(np.uint8)


def one_group(made, real, spacing=ISOTROPIC):
    return overlaps(made.astype(np.uint8), real.astype(np.uint8), spacing, {"organ": [1]})["organ"]


def test_a_shifted_cube_by_hand():
    made, real = cube(11), cube(8)
    found = one_group(made, real)
    assert found.dice == pytest.approx(0.625)
    assert found.jaccard == pytest.approx(5 / 11)
    assert found.hd95_mm == 3
    assert one_group(made, real, (2.0, 1.0, 1.0)).hd95_mm == 6


def test_two_voxels_by_hand():
    made, real = np.zeros((8, 8, 8), bool), np.zeros((8, 8, 8), bool)
    made[0, 0, 0] = real[0, 4, 7] = True
    assert one_group(made, real, (1.0, 1.0, 2.0)).hd95_mm == pytest.approx(np.sqrt(212))


def test_concentric_balls():
    found = one_group(ball(15), ball(20))
    assert found.hd95_mm == pytest.approx(5.19615, abs=1e-4)
    assert found.dice == pytest.approx(0.59506, abs=1e-5)
    assert found.dice == pytest.approx(2 * 15**3 / (15**3 + 20**3), abs=5e-3)


@pytest.mark.parametrize("spacing", [ISOTROPIC, (3.0, 1.5, 0.7)])
def test_agrees_with_monai(spacing):
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou

    made, real = blobs(0), blobs(1)
    one_hot = [
        torch.from_numpy(np.stack([labels == i for i in range(4)])[None].astype(np.float32)) for labels in (made, real)
    ]
    expected = {
        "dice": compute_dice(*one_hot).numpy()[0],
        "jaccard": compute_iou(*one_hot).numpy()[0],
        "hd95_mm": compute_hausdorff_distance(
            *one_hot, include_background=True, percentile=95, spacing=spacing
        ).numpy()[0],
    }
    found = overlaps(made, real, spacing, {str(i): [i] for i in range(4)})
    for name, tolerance in (("dice", 1e-6), ("jaccard", 1e-6), ("hd95_mm", 1e-4)):
        assert [getattr(found[str(i)], name) for i in range(4)] == pytest.approx(expected[name], abs=tolerance), name


def test_the_hundredth_percentile_is_the_hausdorff_distance():
    made, real = blobs(2) == 1, blobs(3) == 1
    spacing = np.array((2.0, 1.0, 0.5))
    a, b = (np.argwhere(mask) * spacing for mask in (made, real))
    expected = max(directed_hausdorff(a, b)[0], directed_hausdorff(b, a)[0])
    assert hausdorff_mm(made, real, tuple(spacing), 100) == pytest.approx(expected)


def test_surface_is_mask_without_its_erosion():
    labels = blobs(4)
    found = surfaces_by_label(labels)
    assert found.keys() == {1, 2, 3}
    for label, where in found.items():
        mask = labels == label
        assert np.array_equal(where, np.flatnonzero(mask & ~ndimage.binary_erosion(mask)))


def test_a_group_absent_from_both_is_no_measurement():
    empty = np.zeros((4, 4, 4), np.uint8)
    found = one_group(empty, empty)
    assert (found.dice, found.jaccard, found.hd95_mm, found.state) == (None, None, None, "absent")


def test_a_missed_organ_costs_the_diagonal_of_the_reference_s_box_and_raises_the_mean():
    real = cube(8).astype(np.uint8)
    real[2, 2, 2] = 2
    missed = overlaps(np.where(real == 1, 0, real), real, (2.0, 1.0, 1.0), {"organ": [1], "other": [2]})
    assert (missed["organ"].dice, missed["organ"].jaccard, missed["organ"].state) == (0, 0, "missed")
    assert missed["organ"].hd95_mm == pytest.approx(math.hypot(2 * 14, 14, 14))  # from voxel 2 to voxel 15
    whole = overlaps(real, real, (2.0, 1.0, 1.0), {"organ": [1], "other": [2]})
    assert mean_of(missed)["hd95_mm"] > mean_of(whole)["hd95_mm"]
    given = overlaps(np.zeros_like(real), real, ISOTROPIC, {"organ": [1]}, penalty_mm=300.0)
    assert given["organ"].hd95_mm == 300


def mean_of(found, penalty_mm=1000.0):
    return summed_up(found.values(), penalty_mm)


def test_a_spurious_organ_is_counted_or_strictly_penalised():
    empty = np.zeros((24, 24, 24), bool)
    found = one_group(cube(8), empty)
    assert (found.dice, found.hd95_mm, found.state) == (None, None, "spurious")
    real = np.zeros((24, 24, 24), np.uint8)
    real[0, 0, 0:3] = 2
    strict = overlaps(cube(8).astype(np.uint8), real, ISOTROPIC, {"organ": [1]}, strict=True)["organ"]
    assert (strict.dice, strict.jaccard, strict.state) == (0, 0, "spurious")
    assert strict.hd95_mm == pytest.approx(math.hypot(1, 1, 3))


def test_macro_and_micro_by_hand():
    made = np.array([[[1, 1, 2, 0, 3, 0]]], np.uint8)
    real = np.array([[[1, 1, 2, 2, 0, 4]]], np.uint8)
    found = overlaps(made, real, ISOTROPIC, {str(i): [i] for i in range(1, 6)}, penalty_mm=50.0)
    assert [found[str(i)].state for i in range(1, 6)] == ["scored", "scored", "spurious", "missed", "absent"]
    means = summed_up(found.values(), 50.0)
    assert means["dice"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert means["jaccard"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    distance = np.percentile([0, 1], 95)  # of label 2: the reference's second voxel lies one from the generated one
    assert means["hd95_mm"] == pytest.approx((0 + distance + 50) / 3)
    assert means["dice_micro"] == pytest.approx(2 * 3 / (3 + 5))
    assert means["jaccard_micro"] == pytest.approx(3 / 5)
    assert (means["missed"], means["spurious"]) == (1, 1)
    assert summed_up([found["5"]], 50.0)["dice"] is None


def test_no_distance_counts_for_more_than_a_missed_organ():
    made, real = np.zeros((2, 2, 40), np.uint8), np.zeros((2, 2, 40), np.uint8)
    made[0, 0, 39] = real[0, 0, 0] = 1
    far = overlaps(made, real, ISOTROPIC, {"organ": [1]})["organ"]
    assert far.hd95_mm == 39
    assert summed_up([far], 10.0)["hd95_mm"] == 10


def test_groups_may_overlap():
    made, real = blobs(9), blobs(10)
    together = overlaps(made, real, ISOTROPIC, {"a": [1, 2], "b": [2, 3], "all": [1, 2, 3], "c": [3]})
    for name, ids in {"a": [1, 2], "b": [2, 3], "all": [1, 2, 3], "c": [3]}.items():
        assert together[name] == overlaps(made, real, ISOTROPIC, {name: ids})[name]


def test_a_group_is_the_union_of_its_ids():
    made, real = blobs(5), blobs(6)
    union = overlaps(made, real, ISOTROPIC, {"two": [1, 3]})["two"]
    whole = one_group(np.isin(made, (1, 3)), np.isin(real, (1, 3)))
    assert union == whole


def test_joint_histogram_counts_every_pair():
    made, real = blobs(7), blobs(8)
    histogram = joint_histogram(made, real)
    assert histogram.sum() == made.size
    for i in range(4):
        for j in range(4):
            assert histogram[i, j] == np.sum((made == i) & (real == j))
    with pytest.raises(ValueError, match="different shapes"):
        joint_histogram(made, real[1:])


seeds = st.integers(0, 10**6)
NUMBERS = ("dice", "jaccard", "hd95_mm")


def pair_of(seed, other, shape=(9, 10, 11)):
    """Two maps of three labels each, some of which are taken away."""
    rng = np.random.default_rng([seed, other])
    maps = [blobs(s, 4, shape) for s in (seed, other)]
    return [np.where(labels == rng.integers(0, 8), 0, labels) for labels in maps]


def each_label(made, real, spacing=(1.5, 1.0, 0.8), **options):
    return overlaps(made, real, spacing, {str(i): [i] for i in (1, 2, 3)}, **options)


@settings(max_examples=40, deadline=None)
@given(seeds, seeds, st.floats(0.2, 5.0), st.sampled_from([(0,), (1,), (2,), (0, 2)]), st.integers(0, 4))
def test_symmetry_scale_flips_and_margins(seed, other, scale, axes, margin):
    made, real = pair_of(seed, other)
    found, swapped = each_label(made, real), each_label(real, made)
    scaled = each_label(made, real, tuple(scale * step for step in (1.5, 1.0, 0.8)))
    flipped = each_label(np.flip(made, axes), np.flip(real, axes))
    padded = each_label(*(np.pad(side, ((margin, 1), (0, margin), (2, margin))) for side in (made, real)))
    for label, one in found.items():
        if one.state == "scored":
            assert [getattr(swapped[label], name) for name in NUMBERS] == [getattr(one, name) for name in NUMBERS]
            assert 0 <= one.jaccard <= one.dice <= 1
            assert one.jaccard == pytest.approx(one.dice / (2 - one.dice))
        for changed, factor in ((scaled[label], scale), (flipped[label], 1), (padded[label], 1)):
            assert (changed.dice, changed.jaccard, changed.state) == (one.dice, one.jaccard, one.state)
            assert (changed.hd95_mm is None) == (one.hd95_mm is None)
            if one.hd95_mm is not None:
                assert changed.hd95_mm == pytest.approx(factor * one.hd95_mm)


@settings(max_examples=60, deadline=None)
@given(seeds, seeds, st.sampled_from([1, 2, 3]), st.floats(0.5, 60.0))
def test_a_missed_organ_never_improves_a_score(seed, other, label, penalty):
    made, real = pair_of(seed, other)
    if not (real == label).any():
        return
    before = each_label(made, real, penalty_mm=penalty)
    after = each_label(np.where(made == label, 0, made), real, penalty_mm=penalty)
    means = [summed_up(found.values(), penalty) for found in (before, after)]
    for name, worse in (("dice", np.less_equal), ("jaccard", np.less_equal), ("hd95_mm", np.greater_equal)):
        assert worse(means[1][name], means[0][name])
        assert worse(*(bounded(found[str(label)], name, penalty) for found in (after, before)))
    assert means[1]["missed"] >= means[0]["missed"]
    one = before[str(label)]
    if one.generated and 2 * one.shared / one.generated >= means[0]["dice_micro"]:
        assert means[1]["dice_micro"] <= means[0]["dice_micro"]
        assert means[1]["jaccard_micro"] <= means[0]["jaccard_micro"]


@settings(max_examples=20, deadline=None)
@given(seeds, seeds)
def test_cropping_changes_nothing(seed, other):
    made, real = (np.pad(side == 1, ((0, 5), (3, 0), (2, 2))) for side in pair_of(seed, other))
    if not (made.any() and real.any()):
        return
    box = bounding_box(made | real)
    assert hausdorff_mm(made[box], real[box], (2.0, 1.0, 0.5)) == hausdorff_mm(made, real, (2.0, 1.0, 0.5))


def test_agrees_with_simpleitk_at_the_hundredth_percentile():
    import SimpleITK as sitk

    spacing = (3.0, 1.5, 0.7)
    for seed in range(4):
        made, real = blobs(seed) == 1, blobs(seed + 50) == 1
        images = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (made, real)]
        for image in images:
            image.SetSpacing(spacing[::-1])
        theirs = sitk.HausdorffDistanceImageFilter()
        theirs.Execute(*images)
        assert hausdorff_mm(made, real, spacing, 100) == pytest.approx(theirs.GetHausdorffDistance(), abs=1e-4)


def test_twenty_labels_agree_with_monai_within_a_ten_millionth():
    import torch
    from monai.metrics import compute_dice

    made, real = blobs(11, 21), blobs(12, 21)
    one_hot = [
        torch.from_numpy(np.stack([labels == i for i in range(1, 21)])[None].astype(np.float32))
        for labels in (made, real)
    ]
    found = overlaps(made, real, ISOTROPIC, {str(i): [i] for i in range(1, 21)})
    expected = compute_dice(*one_hot).double().numpy()[0]
    assert [found[str(i)].dice for i in range(1, 21)] == pytest.approx(expected, abs=1e-7)


def test_where_monai_has_no_number_there_is_a_finite_one():
    """The table of conventions: MONAI gives NaN for a missed organ's HD95 and drops it from the mean."""
    import torch
    from monai.metrics import compute_hausdorff_distance

    real = cube(8)
    nothing = np.zeros_like(real)
    theirs = compute_hausdorff_distance(*(torch.from_numpy(m[None, None].astype(np.float32)) for m in (nothing, real)))
    assert not torch.isfinite(theirs).all()
    assert one_group(nothing, real).hd95_mm == pytest.approx(8 * math.sqrt(3))


@pytest.mark.parametrize("part", [0.1, 0.5])
def test_erased_organs_move_what_they_should(part):
    """A map with some of its organs erased, against itself: the others keep 100/100/0."""
    real = blobs(13, 21, (24, 30, 30))
    erased = range(1, 1 + int(20 * part))
    found = overlaps(np.where(np.isin(real, erased), 0, real), real, ISOTROPIC, {str(i): [i] for i in range(1, 21)})
    for i in range(1, 21):
        one = found[str(i)]
        assert (one.dice, one.hd95_mm == 0, one.state) == ((0, False, "missed") if i in erased else (1, True, "scored"))
    assert summed_up(found.values(), 99.0)["dice"] == pytest.approx(1 - part)


def test_mean_jaccard_is_at_least_that_of_the_mean_dice():
    found = [one_group(blobs(s) == 1, blobs(s + 100) == 1) for s in range(20)]
    mean = np.mean([overlap.dice for overlap in found])
    assert np.mean([overlap.jaccard for overlap in found]) >= mean / (2 - mean)
