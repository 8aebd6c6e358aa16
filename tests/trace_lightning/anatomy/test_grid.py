import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_lightning.anatomy.grid import Grid, resample


def grid(shape=(5, 7, 6), spacing=(3.0, 1.5, 0.8), origin=(10.0, -20.0, 5.0)):
    d, h, w = spacing
    affine = np.diag([-w, -h, d, 1.0])
    affine[:3, 3] = origin
    return Grid(tuple(shape), affine)


def edges(found):
    """World coordinates of the eight corners of the field of view."""
    corners = itertools.product(*((-0.5, n - 0.5) for n in found.shape[::-1]))
    return np.array([found.affine @ (*corner, 1) for corner in corners])


shapes = st.tuples(*[st.integers(1, 12)] * 3)


def test_spacing_of_a_rotated_grid():
    angle = 0.3
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turned = Grid((4, 5, 6), turn @ grid().affine)
    assert turned.spacing_mm == pytest.approx((3.0, 1.5, 0.8))


@settings(max_examples=50, deadline=None)
@given(shapes, shapes)
def test_resized_keeps_the_field_of_view(old, new):
    first = grid(old)
    second = first.resized(new)
    assert second.shape == new
    assert edges(second) == pytest.approx(edges(first))
    assert second.resized(old).equals(first, 1e-6)
    extent = [n * s for n, s in zip(old, first.spacing_mm, strict=True)]
    assert [n * s for n, s in zip(new, second.spacing_mm, strict=True)] == pytest.approx(extent)


def test_at_spacing():
    found = grid((10, 20, 30), (3.0, 1.5, 0.8)).at_spacing((2.0, None, 1.2))
    assert found.shape == (15, 20, 20)
    assert found.spacing_mm == pytest.approx((2.0, 1.5, 1.2))
    assert grid((10, 20, 30), (3.0, 1.5, 0.8)).at_spacing((100.0, None, None)).shape == (1, 20, 30)


def test_equals_and_json():
    first = grid()
    assert first.equals(Grid.from_json(first.to_json()), 0)
    assert not first.equals(grid((5, 7, 7)))
    assert not first.equals(grid(origin=(10.0, -20.0, 5.1)))
    assert first.equals(grid(origin=(10.0, -20.0, 5.0 + 1e-5)))


def slow_resample(array, source, target, order, fill):
    """Voxel by voxel: world coordinates, then trilinear or nearest, the outermost voxels extended."""
    out = np.full(target.shape, fill, np.float64)
    to_index = np.linalg.inv(source.affine)
    for d, h, w in np.ndindex(*target.shape):
        index = (to_index @ target.affine @ (w, h, d, 1))[2::-1]
        if any(i < -1 or i > n for i, n in zip(index, array.shape, strict=True)):
            continue
        index = [min(max(i, 0), n - 1) for i, n in zip(index, array.shape, strict=True)]
        if order == 0:
            out[d, h, w] = array[tuple(int(np.floor(i + 0.5)) for i in index)]
            continue
        value = 0.0
        for corner in itertools.product((0, 1), repeat=3):
            low = [int(np.floor(i)) for i in index]
            weight = np.prod([i - b if c else 1 - (i - b) for i, b, c in zip(index, low, corner, strict=True)])
            at = tuple(min(b + c, n - 1) for b, c, n in zip(low, corner, array.shape, strict=True))
            value += weight * array[at]
        out[d, h, w] = value
    return out


def translation(x, y, z):
    return np.array([[1, 0, 0, x], [0, 1, 0, y], [0, 0, 1, z], [0, 0, 0, 1.0]])


TARGETS = {
    "finer": lambda g: g.resized((9, 11, 13)),
    "shifted": lambda g: Grid(g.shape, translation(0.31, -0.7, 1.1) @ g.affine),
    "beyond": lambda g: grid((8, 9, 14), (2.9, 1.4, 0.79), (14.1, -15.2, -3.3)),
    "flipped": lambda g: Grid(g.shape, g.affine @ translation(5, 0, 4) @ np.diag([-1, 1, -1, 1])),
}


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("name", TARGETS)
def test_against_a_slow_reference(name, order):
    source = grid()
    target = TARGETS[name](source)
    array = np.random.default_rng(0).normal(size=source.shape) * 100
    found = resample(array, source, target, order, -7.0)
    assert found == pytest.approx(slow_resample(array, source, target, order, -7.0), abs=1e-3)


def test_a_flipped_grid_flips_the_array():
    source = grid()
    target = TARGETS["flipped"](source)
    array = np.random.default_rng(1).integers(0, 9, source.shape).astype(np.uint8)
    assert np.array_equal(resample(array, source, target, 0, 0), array[::-1, :, ::-1])
    assert np.array_equal(resample(array.astype(np.float32), source, target, 1, 0), array[::-1, :, ::-1])


def test_the_same_grid_copies():
    array = np.random.default_rng(2).normal(size=(5, 7, 6)).astype(np.float32)
    found = resample(array, grid(), grid(), 1, 0)
    assert np.array_equal(found, array)
    assert found is not array


@pytest.mark.parametrize("shape", [(10, 14, 12), (3, 4, 3)])
def test_constants_and_dtypes_are_kept(shape):
    source = grid()
    for dtype in (np.int16, np.float32, np.uint8):
        found = resample(np.full(source.shape, 42, dtype), source, source.resized(shape), 1, 0)
        assert found.dtype == dtype
        assert found == pytest.approx(np.full(shape, 42), abs=1e-3)


def test_a_ramp_survives_down_sampling():
    source = grid((20, 24, 28))
    target = source.resized((8, 9, 10))
    ramp = np.arange(20)[:, None, None] * 3.0 + np.arange(24)[None, :, None] * 2.0 - np.arange(28) + 100.0
    found = resample(ramp, source, target, 1, 0)
    axes = [(np.arange(n) + 0.5) * old / n - 0.5 for n, old in zip(target.shape, source.shape, strict=True)]
    expected = axes[0][:, None, None] * 3 + axes[1][None, :, None] * 2 - axes[2] + 100
    assert found[2:-2, 2:-2, 2:-2] == pytest.approx(expected[2:-2, 2:-2, 2:-2], abs=0.02)


def test_down_sampling_averages_noise_and_keeps_no_alias():
    rng = np.random.default_rng(3)
    source = grid((32, 32, 32), (1.0, 1.0, 1.0))
    target = source.resized((32, 8, 8))
    noise = rng.normal(size=source.shape)
    assert resample(noise, source, target, 1, 0).std() < 0.5 * noise.std()
    stripes = np.where(np.arange(32) % 2, 1.0, -1.0) * np.ones(source.shape)
    assert np.abs(resample(stripes, source, target, 1, 0)[:, 1:-1, 1:-1]).max() < 0.2


def test_labels_stay_labels():
    rng = np.random.default_rng(4)
    labels = rng.choice(np.array([0, 20, 132], np.uint8), (6, 8, 10))
    source = grid(labels.shape)
    for shape in ((12, 16, 20), (3, 5, 7)):
        found = resample(labels, source, source.resized(shape), 0, 0)
        assert found.dtype == np.uint8
        assert set(np.unique(found)) <= {0, 20, 132}
    doubled = resample(labels, source, source.resized((12, 16, 20)), 0, 0)
    assert np.array_equal(doubled, labels.repeat(2, 0).repeat(2, 1).repeat(2, 2))


def test_outside_the_field_of_view_is_fill():
    source = grid()
    far = Grid(source.shape, translation(0, 0, 100) @ source.affine)
    assert (resample(np.ones(source.shape), source, far, 1, -1024.0) == -1024).all()
