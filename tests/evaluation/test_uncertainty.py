import numpy as np
import pytest
from scipy import stats

from evaluation.uncertainty import interval


def test_agrees_with_scipy():
    values = np.random.default_rng(0).gamma(2.0, 3.0, 30)
    low, high = interval(values, samples=9999)
    expected = stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=1).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=0.02)


def test_is_seeded():
    values = np.random.default_rng(1).normal(size=12)
    assert interval(values, 500, seed=3) == interval(values, 500, seed=3)
    assert interval(values, 500, seed=3) != interval(values, 500, seed=4)


def test_one_volume_has_no_interval():
    assert interval([0.7]) is None
    assert interval([]) is None
    assert interval([0.7, 0.8], samples=0) is None
