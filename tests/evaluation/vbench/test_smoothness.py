import numpy as np
import pytest

from evaluation.vbench import smoothness
from evaluation.vbench.smoothness import Smoothness
from evaluation.vbench.video import Video


def levels(*values, shape=(4, 4)):
    return np.array(values, np.uint8)[:, None, None] * np.ones((1, *shape), np.uint8)


def linear(frames, body=None):
    return smoothness.load()(Video(frames, body=body))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([77] * 6, 1.0),
        (list(range(0, 100, 10)), 1.0),
        ([0, 255] * 4, 0.0),
        ([0, 10, 30, 40, 60], 1 - 5 / 255),  # 10 for 15, 40 for 45
    ],
)
def test_by_hand(values, expected):
    assert linear(levels(*values))["linear_smoothness"] == pytest.approx(expected)


def test_halves_are_not_rounded():
    assert linear(levels(10, 15, 21))["linear_smoothness"] == pytest.approx(1 - 0.5 / 255)


@pytest.mark.parametrize(("frames", "midpoints"), [(3, 1), (4, 1), (9, 4), (10, 4), (11, 5)])
def test_number_of_midpoints(frames, midpoints):
    asked = []

    def spy(before, after):
        asked.append((int(before[0, 0]), int(after[0, 0])))
        return before

    Smoothness("s", spy)(Video(levels(*range(frames))))
    assert asked == [(2 * k, 2 * k + 2) for k in range(midpoints)]


def test_the_last_odd_slice_of_an_even_number_is_left_out():
    assert linear(levels(0, 0, 0, 255))["linear_smoothness"] == 1


@pytest.mark.parametrize("frames", [1, 2])
def test_too_few_slices(frames):
    with pytest.raises(ValueError, match="3 slices or more"):
        linear(levels(*range(frames)))


def test_the_body_alone():
    frames = levels(0, 0, 0)
    frames[1, 0, 0] = 51
    body = np.zeros(frames.shape, bool)
    body[1, 0, 0] = body[0, 0, 1] = True
    found = linear(frames, body)
    assert found["linear_smoothness"] == pytest.approx(1 - 51 / 255 / 16)
    assert found["body_linear_smoothness"] == pytest.approx(1 - 51 / 255 / 2)
    assert linear(frames, np.zeros(frames.shape, bool))["body_linear_smoothness"] is None


def test_names_of_body_measures():
    frames = levels(1, 1, 1)
    found = Smoothness("motion_smoothness", lambda a, b: a)(Video(frames, body=frames > 0))
    assert sorted(found) == ["body_smoothness", "motion_smoothness"]
