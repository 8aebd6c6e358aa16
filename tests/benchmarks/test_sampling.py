"""The study of steps and noise correlation: the error by hand, and what is chosen when."""

from __future__ import annotations

import pytest

from benchmarks import sampling
from trace_lightning.errors import UserError

REAL = {name: [2.0, 2.0] for name in sampling.MEASURES}


def _values(along_z: float, dice: float = 0.8) -> dict[str, list[float]]:
    """Two volumes whose measures along z are `along_z` times the real ones'."""
    return {name: [2.0 * along_z] * 2 for name in sampling.MEASURES} | {"dice": [dice, dice]}


def _found(**better: dict[str, list[float]]) -> dict[str, dict[str, list[float]]]:
    return {point.row.name: _values(1.5) for point in sampling.points()} | better


def test_the_error_is_the_mean_of_relative_differences():
    values = _values(1.0) | {"adjacent_difference_hu": [1.0, 2.0], "lung_correlation_z1": [3.0, 3.0]}
    assert sampling.error_along_z(values, REAL) == pytest.approx((0.25 + 0.5 + 0 + 0) / 4)


def test_the_least_error_is_chosen():
    chosen = sampling.choose(_found(s25_r30=_values(1.1), s10_r50=_values(1.2)), REAL)
    assert (chosen.steps, chosen.correlation) == (25, 0.3)


def test_fewer_steps_are_chosen_where_they_cost_no_more_than_enough():
    chosen = sampling.choose(_found(s25_r30=_values(1.100), s10_r50=_values(1.109)), REAL)
    assert (chosen.steps, chosen.correlation) == (10, 0.5)


def test_a_dice_below_the_margin_is_not_chosen():
    found = _found(s25_r30=_values(1.1, dice=0.789), s10_r50=_values(1.2, dice=0.791))
    assert sampling.choose(found, REAL).row.name == "s10_r50"
    with pytest.raises(UserError, match=r"0\.790"):
        sampling.choose(
            {name: values | {"dice": [0.1, 0.1]} for name, values in _found().items()}
            | {sampling.LITERAL.name: _values(1.0)},
            REAL,
        )


def test_the_report_names_the_choice_and_both_halves(tmp_path):
    found = _found(s25_r30=_values(1.1))
    halves, cases = {"chosen on": found, "elsewhere": found}, ["valid_1", "valid_2", "valid_3", "valid_4"]
    text = sampling.report(halves, {half: REAL for half in halves}, cases, "COMMAND", "plot.png")
    assert "**25 steps, correlation 0.3**" in text and "COMMAND" in text
    assert text.count("| Algorithm 1, 50 |") == 2
    assert "-0.800 to -0.800" in text  # 1.1 - 1.5 of 2.0 in each volume
    sampling.draw(found, REAL, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_algorithm_1_stands_first_and_the_grid_is_whole():
    points = sampling.points()
    assert points[0].row.name == "algorithm1" and points[0].correlation is None
    assert len(points) == 1 + len(sampling.STEPS) * len(sampling.CORRELATIONS)
    assert len({point.row.name for point in points}) == len(points)
