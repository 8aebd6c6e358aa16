import numpy as np
import pytest
from scipy import stats

from evaluation.uncertainty import interval, paired


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


def test_paired_by_hand():
    a, b = [1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 2.0, 5.0]
    found = paired(a, b, ["p", "q", "r", "s"])
    assert (found.mean_a, found.mean_b, found.difference) == (2.5, 2.75, -0.25)
    assert found.ratio == pytest.approx((0.5 + 1 + 1.5 + 0.8) / 4)
    assert (found.lower, found.volumes, found.cases) == (2, 4, 4)
    low, high = found.difference_interval
    assert low <= -0.25 <= high


def test_a_paired_interval_is_tighter_than_the_spread_of_cases():
    rng = np.random.default_rng(2)
    case_level = rng.normal(0, 10, 40)
    a, b = case_level + rng.normal(0.5, 0.1, 40), case_level + rng.normal(0, 0.1, 40)
    low, high = paired(a, b, [str(i) for i in range(40)]).difference_interval
    assert 0.4 < low < high < 0.6


def test_seeds_of_a_case_are_one_unit():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=6), rng.normal(size=6)
    cases = [str(i) for i in range(6)]
    once = paired(a, b, cases)
    thrice = paired(np.tile(a, 3), np.tile(b, 3), cases * 3)
    assert thrice.difference_interval == pytest.approx(once.difference_interval)
    assert (thrice.volumes, thrice.cases) == (18, 6)


def test_no_ratio_where_a_value_is_not_positive():
    found = paired([0.1, -0.2], [0.1, 0.2], ["p", "q"])
    assert found.ratio is None
    assert found.ratio_interval is None


def test_paired_refuses_other_lengths():
    with pytest.raises(ValueError, match="same"):
        paired([1.0], [1.0, 2.0], ["p"])
