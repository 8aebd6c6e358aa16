import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import directed_hausdorff

from evaluation.fidelity import dice, hausdorff_mm, joint_histogram, overlaps, surface

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
    mask = blobs(4) == 1
    assert np.array_equal(surface(mask), mask & ~ndimage.binary_erosion(mask))


def test_a_group_absent_from_both_is_no_measurement():
    empty = np.zeros((4, 4, 4), np.uint8)
    found = one_group(empty, empty)
    assert (found.dice, found.jaccard, found.hd95_mm, found.state) == (None, None, None, "absent")


def test_a_missed_organ_costs_the_diagonal_and_raises_the_mean():
    real = cube(8)
    missed = one_group(np.zeros_like(real), real, (2.0, 1.0, 1.0))
    assert (missed.dice, missed.jaccard, missed.state) == (0, 0, "missed")
    assert missed.hd95_mm == pytest.approx(np.sqrt(48**2 + 24**2 + 24**2))
    assert np.mean([3.0, missed.hd95_mm]) > 3.0


def test_a_spurious_organ_is_counted_not_averaged():
    found = one_group(cube(8), np.zeros((24, 24, 24), bool))
    assert (found.dice, found.hd95_mm, found.state) == (None, None, "spurious")


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


pairs = st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)).map(
    lambda seeds: [blobs(s, 3, (9, 10, 11)) for s in seeds]
)


@settings(max_examples=25, deadline=None)
@given(pairs, st.floats(0.2, 5.0), st.sampled_from([(0,), (1,), (2,), (0, 2)]))
def test_properties(labels, scale, axes):
    made, real = labels
    spacing = (1.5, 1.0, 0.8)
    found = overlaps(made, real, spacing, {"organ": [1]})["organ"]
    swapped = overlaps(real, made, spacing, {"organ": [1]})["organ"]
    if found.state != "scored":
        assert dice(made, real, [1]) in (0, None)
        return
    assert swapped == found
    assert 0 <= found.jaccard <= found.dice <= 1
    assert found.jaccard == pytest.approx(found.dice / (2 - found.dice))
    scaled = overlaps(made, real, tuple(scale * s for s in spacing), {"organ": [1]})["organ"]
    assert scaled.hd95_mm == pytest.approx(scale * found.hd95_mm)
    flipped = overlaps(np.flip(made, axes), np.flip(real, axes), spacing, {"organ": [1]})["organ"]
    assert flipped.dice == found.dice
    assert flipped.hd95_mm == pytest.approx(found.hd95_mm)
    # a margin changes nothing once no mask touches the border of the volume
    inner = [np.pad(side, 1) for side in (made, real)]
    wider = [np.pad(side, 4) for side in (made, real)]
    assert hausdorff_mm(*(side == 1 for side in inner), spacing) == pytest.approx(
        hausdorff_mm(*(side == 1 for side in wider), spacing)
    )
    assert hausdorff_mm(made == 1, made == 1, spacing) == 0


def test_mean_jaccard_is_at_least_that_of_the_mean_dice():
    found = [one_group(blobs(s) == 1, blobs(s + 100) == 1) for s in range(20)]
    mean = np.mean([overlap.dice for overlap in found])
    assert np.mean([overlap.jaccard for overlap in found]) >= mean / (2 - mean)
