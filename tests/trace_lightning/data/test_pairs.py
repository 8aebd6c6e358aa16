import itertools

from hypothesis import given
from hypothesis import strategies as st

from trace_lightning.data.pairs import pairs


@given(st.integers(0, 60), st.lists(st.integers(1, 9), unique=True, max_size=4))
def test_pairs_are_those_of_equation_3(num_slices, skips):
    found = pairs(num_slices, skips)
    slices = range(num_slices)
    expected = {(i, j) for i, j in itertools.product(slices, slices) for k in skips if j == i + k and i % k == 0}
    assert set(found) == expected
    assert len(found) == len(set(found))


def test_a_volume_of_nine_slices():
    assert pairs(9, [2, 4]) == [(0, 2), (2, 4), (4, 6), (6, 8), (0, 4), (4, 8)]


def test_the_paper_has_1_75_pairs_per_slice():
    assert abs(len(pairs(10_000, [1, 2, 4])) / 10_000 - 1.75) < 0.001
