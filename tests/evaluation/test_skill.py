import numpy as np
import pytest

from evaluation.skill import skill, stretched


def test_marks():
    assert skill(0.5, 0.5, 0.9) == 0
    assert skill(0.9, 0.5, 0.9) == 1
    assert skill(0.7, 0.5, 0.9) == pytest.approx(0.5)
    assert skill(0.3, 0.5, 0.9) < 0
    assert skill(0.5, 0.9, 0.9) is None


def test_stretched_against_a_loop():
    labels = np.random.default_rng(0).integers(0, 5, (5, 4, 3)).astype(np.uint8)
    found = stretched(labels, (8, 4, 2))
    for (z, y, x), value in np.ndenumerate(found):
        source = [
            min(old - 1, int((i + 0.5) / new * old))
            for i, old, new in zip((z, y, x), (5, 4, 3), (8, 4, 2), strict=True)
        ]
        assert value == labels[tuple(source)]
    assert np.array_equal(stretched(labels, labels.shape), labels)
    assert np.array_equal(stretched(stretched(labels, (10, 8, 6)), (5, 4, 3)), labels)
