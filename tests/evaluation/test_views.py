import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.views import VIEWS, Clips, centred, oriented

VOLUME = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)  # (T, H, W), LPS


def starts(clips, depth):
    volume = np.arange(depth, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    return [clip[:, 0, 0].tolist() for clip in clips.of(volume, "case")]


def test_windows_cover_the_whole_volume():
    assert [clip[0] for clip in starts(Clips(frames=4, stride=4), 8)] == [0, 4]
    assert [clip[0] for clip in starts(Clips(frames=4, stride=4), 10)] == [0, 4, 6]
    assert [clip[0] for clip in starts(Clips(frames=4, stride=2), 9)] == [0, 2, 4, 5]
    assert starts(Clips(frames=4, stride=4), 4) == [[0, 1, 2, 3]]
    assert starts(Clips(frames=4, stride=4), 3) == []
    assert starts(Clips(frames=3, step=2, stride=3), 8) == [[0, 2, 4], [3, 5, 7]]


@given(st.integers(1, 90), st.integers(1, 16), st.integers(1, 3), st.integers(1, 16))
def test_every_slice_is_in_a_window_or_the_volume_is_too_short(depth, frames, step, stride):
    clips = Clips(frames=frames, step=step, stride=min(stride, frames))
    found = starts(clips, depth)
    if depth < clips.span:
        assert found == []
    else:
        assert found[0][0] == 0
        assert found[-1][-1] == depth - 1
        if step == 1:
            assert {z for clip in found for z in clip} == set(range(depth))


def test_stylegan_v_starts_at_random_in_real_volumes_only():
    views = VIEWS["stylegan_v"]
    volume = np.arange(100, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    made = [views.clips(volume, f"case_{i}", real=False)[0, 0, 0, 0] for i in range(20)]
    real = [views.clips(volume, f"case_{i}", real=True)[0, 0, 0, 0] for i in range(20)]
    assert set(made) == {0}
    assert len(set(real)) > 10
    assert max(real) <= 84
    assert real == [views.clips(volume, f"case_{i}", real=True)[0, 0, 0, 0] for i in range(20)]
    assert real != [views.clips(volume, f"case_{i}", real=True, seed=1)[0, 0, 0, 0] for i in range(20)]
    assert views.clips(volume[:15], "case", real=True).shape == (0, 16, 2, 2)


def test_radiological_planes():
    views = VIEWS["trace"]
    axial, coronal, sagittal = (views.slices(VOLUME, plane) for plane in ("axial", "coronal", "sagittal"))
    assert np.array_equal(axial, VOLUME)
    assert coronal.shape == (4, 5, 3)
    assert np.array_equal(coronal[1, 0], VOLUME[4, 1])  # the head is on top
    assert sagittal.shape == (3, 5, 4)
    assert np.array_equal(sagittal[2, 0], VOLUME[4, :, 2])
    assert axial.base is not None


def test_vlm3d_planes_are_those_of_arrays_in_ras():
    """Their script indexes (x, y, z) arrays that run to the right, the front and the head."""
    ras = VOLUME.transpose(2, 1, 0)[::-1, ::-1]
    views = VIEWS["vlm3d"]
    xy, yz, zx = (oriented(VOLUME, views.planes[plane]) for plane in ("xy", "yz", "zx"))
    assert np.array_equal(xy, ras.transpose(2, 0, 1))
    assert np.array_equal(yz, ras)
    assert np.array_equal(zx, ras.transpose(1, 0, 2))


@pytest.mark.parametrize("shape", [(3, 7, 9), (10, 10, 10), (8, 8, 8), (1, 20, 5)])
def test_cube_about_the_centre(shape):
    monai = pytest.importorskip("monai.transforms")
    volume = np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)
    pad, crop = monai.SpatialPad((8, 8, 8), mode="constant", constant_values=0), monai.CenterSpatialCrop((8, 8, 8))
    assert np.array_equal(centred(volume, 8), np.asarray(crop(pad(volume[None])))[0])
    assert centred(volume, None) is volume


def test_rules_are_data():
    import json

    described = {name: json.dumps(views.to_json()) for name, views in VIEWS.items()}
    assert len(set(described.values())) == len(VIEWS)
