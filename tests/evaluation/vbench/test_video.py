import numpy as np
import pytest

from evaluation.vbench.video import BATCH, Video, batches, even_indices


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (200, [12, 37, 62, 87, 112, 137, 162, 187]),
        (425, [26, 79, 132, 185, 238, 291, 344, 397]),
        (16, [0, 2, 4, 6, 8, 10, 12, 14]),
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (5, [0, 1, 2, 3, 4, 4, 4, 4]),
        (1, [0] * 8),
    ],
)
def test_even_indices(frames, expected):
    assert even_indices(frames, 8).tolist() == expected


def test_all_indices_are_all_frames():
    assert even_indices(37, 37).tolist() == list(range(37))


@pytest.mark.parametrize("frames", [np.zeros((3, 4, 4), np.float32), np.zeros((4, 4), np.uint8)])
def test_frames_are_grey_bytes(frames):
    with pytest.raises(ValueError, match="uint8"):
        Video(frames)


def test_the_body_has_the_frames_shape(noise):
    with pytest.raises(ValueError, match="body is bool"):
        Video(noise(3), body=np.zeros((3, 4, 4), bool))


def test_batches_are_bounded_and_whole(noise):
    frames = noise(2 * BATCH + 3)
    parts = list(batches(frames))
    assert max(map(len, parts)) == BATCH
    assert np.array_equal(np.concatenate(parts), frames)
