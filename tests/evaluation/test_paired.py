import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evaluation.paired import crossed_interval, paired

CASES = [f"case_{i}" for i in range(6)]


def test_by_hand():
    a, b = [1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 2.0, 5.0]
    found = paired(a, b, ["p", "q", "r", "s"])
    assert (found.mean_a, found.mean_b, found.difference) == (2.5, 2.75, -0.25)
    assert found.ratio == pytest.approx((0.5 + 1 + 1.5 + 0.8) / 4)
    assert (found.lower, found.volumes, found.cases, found.trainings) == (2, 4, 4, 1)


def test_one_training_is_the_paired_t_interval():
    rng = np.random.default_rng(0)
    a, b = rng.normal(3, 1, 6), rng.normal(2.5, 1, 6)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert paired(a, b, CASES).difference_interval == pytest.approx((expected.low, expected.high))


def test_trainings_alone_are_a_t_interval_of_their_means():
    of_training = np.array([0.0, 3.0, 9.0])
    expected = stats.ttest_1samp(of_training, 0).confidence_interval(0.95)
    low, high = crossed_interval(np.tile(of_training, (5, 1)))
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert low < 0, "three trainings from 0 to 9 do not exclude 0"


def test_cases_alone_are_a_t_interval_of_their_means():
    values = np.random.default_rng(1).normal(size=7)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert crossed_interval(np.tile(values[:, None], (1, 4))) == pytest.approx((expected.low, expected.high))


def test_mean_squares_by_hand():
    # rows 1.5, 4.5 and columns 2, 4 about the mean 3; what is left: 0.5
    values = np.array([[1.0, 2.0], [3.0, 6.0]])
    of_cases, of_trainings, rest = 2 * (1.5**2 * 2), 2 * (1.0**2 * 2), 4 * 0.5**2
    total = of_cases + of_trainings - rest
    freedom = max(1, total**2 / (of_cases**2 + of_trainings**2 + rest**2))
    half = stats.t.ppf(0.975, freedom) * np.sqrt(total / 4)
    assert crossed_interval(values) == pytest.approx((3 - half, 3 + half))


@pytest.mark.parametrize("deviation", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("trainings", [2, 3, 5])
def test_no_more_than_one_in_ten_excludes_the_truth(trainings, deviation):
    rng, missed = np.random.default_rng(2), 0
    for _ in range(500):
        values = (
            rng.normal(0, 0.5, (6, 1)) + rng.normal(0, deviation, (1, trainings)) + rng.normal(0, 0.3, (6, trainings))
        )
        low, high = crossed_interval(values)
        missed += not low <= 0 <= high
    assert missed <= 60, "5 % are wanted; a bootstrap over cases errs in up to 57 %"


@given(st.integers(2, 8), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_holds_the_mean_and_moves_with_the_values(num_cases, num_trainings, seed):
    values = np.random.default_rng(seed).normal(size=(num_cases, num_trainings))
    low, high = crossed_interval(values)
    assert low <= values.mean() <= high
    assert crossed_interval(2 * values + 5) == pytest.approx((2 * low + 5, 2 * high + 5))
    assert crossed_interval(values[::-1, ::-1]) == pytest.approx((low, high))


def test_a_case_that_lacks_a_value_is_left_out():
    a = [1.0, 5.0, 9.0, 2.0, None, 4.0]
    found = paired(a, [0.5, 1.0, 1.0, 1.0, 1.0, 2.0], list("pqrpqr"), [0, 0, 0, 1, 1, 1])
    assert (found.cases, found.trainings, found.volumes) == (2, 2, 4)
    assert found.mean_a == (1 + 9 + 2 + 4) / 4
    assert found.difference == (0.5 + 8 + 1 + 2) / 4
    assert found.ratio == (2 + 9 + 2 + 2) / 4
    assert found.difference_interval == crossed_interval(np.array([[0.5, 1.0], [8.0, 2.0]]))
    assert found.ratio_interval == crossed_interval(np.array([[2.0, 2.0], [9.0, 2.0]]))


def test_what_lacks_a_whole_training_is_not_judged():
    assert paired([1.0, 2.0, None, None], [0.0] * 4, list("pqpq"), [0, 0, 1, 1]) is None
    assert paired([1.0, 2.0], [0.0] * 2, list("pq"), [0, 1]) is None


def test_one_case_has_no_interval_however_many_trainings():
    found = paired([1.0, 2.0, 3.0], [0.0] * 3, ["p"] * 3, [0, 1, 2])
    assert found.difference == 2
    assert found.difference_interval is None


def test_no_ratio_where_a_value_is_not_positive():
    found = paired([0.1, -0.2], [0.1, 0.2], ["p", "q"])
    assert found.ratio is None
    assert found.ratio_interval is None


def test_refuses_what_is_no_pairing():
    with pytest.raises(ValueError):
        paired([1.0], [1.0, 2.0], ["p"])
    with pytest.raises(ValueError, match="twice"):
        paired([1.0, 2.0], [1.0, 2.0], ["p", "p"])
    with pytest.raises(ValueError, match="finite"):
        paired([1.0, float("nan")], [1.0, 2.0], ["p", "q"])
