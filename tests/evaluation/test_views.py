import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.settings import protocol_names, read_protocol
from evaluation.views import ClipRule, SliceRule, centred, oriented
from trace_lightning.errors import UserError

VOLUME = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)  # (T, H, W), LPS


def starts(clips, depth):
    volume = np.arange(depth, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    return [clip[:, 0, 0].tolist() for clip in clips.of(volume, "case", real=True)]


def test_windows_cover_the_whole_volume():
    assert [clip[0] for clip in starts(ClipRule(frames=4, stride=4), 8)] == [0, 4]
    assert [clip[0] for clip in starts(ClipRule(frames=4, stride=4), 10)] == [0, 4, 6]
    assert [clip[0] for clip in starts(ClipRule(frames=4, stride=2), 9)] == [0, 2, 4, 5]
    assert starts(ClipRule(frames=4, stride=4), 4) == [[0, 1, 2, 3]]
    assert starts(ClipRule(frames=4, stride=4), 3) == []
    assert starts(ClipRule(frames=3, step=2, stride=3), 8) == [[0, 2, 4], [3, 5, 7]]


@given(st.integers(1, 90), st.integers(1, 16), st.integers(1, 3), st.integers(1, 16))
def test_every_slice_is_in_a_window_or_the_volume_is_too_short(depth, frames, step, stride):
    clips = ClipRule(frames=frames, step=step, stride=min(stride, frames))
    found = starts(clips, depth)
    if depth < clips.span:
        assert found == []
    else:
        assert found[0][0] == 0
        assert found[-1][-1] == depth - 1
        if step == 1:
            assert {z for clip in found for z in clip} == set(range(depth))


def test_stylegan_v_starts_at_random_in_real_volumes_only():
    clips = read_protocol("stylegan_v").clips
    volume = np.arange(100, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    made = [clips.of(volume, f"case_{i}", real=False)[0, 0, 0, 0] for i in range(20)]
    real = [clips.of(volume, f"case_{i}", real=True)[0, 0, 0, 0] for i in range(20)]
    assert set(made) == {0}
    assert len(set(real)) > 10
    assert max(real) <= 84
    assert real == [clips.of(volume, f"case_{i}", real=True)[0, 0, 0, 0] for i in range(20)]
    assert real != [clips.of(volume, f"case_{i}", real=True, seed=1)[0, 0, 0, 0] for i in range(20)]
    assert clips.of(volume[:15], "case", real=True).shape == (0, 16, 2, 2)


def test_radiological_planes():
    slices = read_protocol("trace").slices
    axial, coronal, sagittal = (slices.of(VOLUME, plane) for plane in slices.planes)
    assert np.array_equal(axial, VOLUME)
    assert coronal.shape == (4, 5, 3)
    assert np.array_equal(coronal[1, 0], VOLUME[4, 1])  # the head is on top
    assert sagittal.shape == (3, 5, 4)
    assert np.array_equal(sagittal[2, 0], VOLUME[4, :, 2])
    assert axial.base is not None


def test_vlm3d_planes_are_those_of_arrays_in_ras():
    """Their script indexes (x, y, z) arrays that run to the right, the front and the head."""
    ras = VOLUME.transpose(2, 1, 0)[::-1, ::-1]
    slices = read_protocol("vlm3d").slices
    xy, yz, zx = (oriented(VOLUME, plane) for plane in slices.planes)
    assert np.array_equal(xy, ras.transpose(2, 0, 1))
    assert np.array_equal(yz, ras)
    assert np.array_equal(zx, ras.transpose(1, 0, 2))


@pytest.mark.parametrize("shape", [(3, 7, 9), (10, 10, 10), (8, 8, 8), (1, 20, 5)])
def test_cube_about_the_centre(shape):
    from monai import transforms

    volume = np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)
    pad, crop = transforms.SpatialPad((8, 8, 8), constant_values=0), transforms.CenterSpatialCrop((8, 8, 8))
    assert np.array_equal(centred(volume, 8), np.asarray(crop(pad(volume[None])))[0])
    assert centred(volume, None) is volume


def test_every_other_slice():
    assert np.array_equal(SliceRule(every=2).of(VOLUME, "SPL"), VOLUME[::2])


def test_rules_are_data():
    found = {str(read_protocol(name).views()) for name in protocol_names()}
    assert len(found) == len(protocol_names())


@pytest.mark.parametrize("wrong", [{"planes": ("SPS",)}, {"planes": ("axial",)}, {"planes": ()}, {"every": 0}])
def test_wrong_slices(wrong):
    with pytest.raises(UserError, match="slices"):
        SliceRule(**wrong)


@pytest.mark.parametrize("wrong", [{"chunk": 0}, {"stride": 0}, {"ddof": 2}])
def test_wrong_clips(wrong):
    with pytest.raises(UserError, match="clips"):
        ClipRule(**wrong)
