import numpy as np
import pytest
from scipy import stats

from evaluation.uncertainty import crossed_interval, interval, paired


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


def test_one_training_leaves_the_interval_over_cases():
    values = np.random.default_rng(4).normal(size=9)
    assert crossed_interval(values[:, None]) == interval(values)


def test_trainings_by_hand():
    # cases agree: what is resampled is 0, 3, 9; all three are the same one in 1 of 27 samples, 3.7 % at either end
    values = np.tile([0.0, 3.0, 9.0], (5, 1))
    assert crossed_interval(values, 20000) == (0.0, 9.0)
    assert crossed_interval(values[:, :1], 1000) == (0.0, 0.0)


def test_both_spreads_enter_the_interval():
    rng = np.random.default_rng(5)
    cases, trainings = rng.normal(0, 2, (40, 1)), rng.normal(0, 3, (1, 50))
    low, high = crossed_interval(cases + trainings, 4000)
    deviation = np.sqrt(cases.var() / 40 + trainings.var() / 50)
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.06)


def test_a_volume_may_be_missing():
    values = np.ones((6, 3))
    values[0, 1] = values[4, 0] = values[4, 2] = np.nan
    assert crossed_interval(values) == (1.0, 1.0)


def test_trainings_that_disagree_are_no_difference():
    rng = np.random.default_rng(6)
    of_training = np.array([1.0, -0.2, 0.6])
    a = (of_training + rng.normal(0, 0.05, (8, 3))).ravel()
    cases, trainings = np.repeat(np.arange(8), 3), np.tile(np.arange(3), 8)
    given, free = (paired(a, np.zeros(24), cases, of).difference_interval for of in (None, trainings))
    assert given[0] > 0.3, "these three trainings differ"
    assert free[0] < 0 < free[1], "that says little of a fourth"
    assert free[1] > given[1]


def test_volumes_of_a_case_without_trainings_are_one_unit():
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
