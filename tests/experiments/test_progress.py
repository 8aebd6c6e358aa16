"""How far a task is, in words."""

from __future__ import annotations

from types import SimpleNamespace

from experiments.progress import UNITS, Report, describe
from experiments.tasks import STAGES

TASK = SimpleNamespace(name="generate")


def test_pace_and_time_left_count_only_what_this_start_made():
    report = Report("generate", done=60, total=100, first=40, seconds=10.0, note="valid_2_a_1")
    assert describe(report, TASK) == "generate 60/100, 2 slices/s, 20 s left (valid_2_a_1)"


def test_the_start_and_the_end_say_no_pace():
    assert describe(None, TASK) == "generate starting"
    assert describe(Report("generate", 40, 100, 40, 1.0), TASK) == "generate 40/100"
    assert describe(Report("generate", 41, 100, 40, 0.0), TASK) == "generate 41/100"
    assert describe(Report("generate", 100, 100, 40, 9.0), TASK) == "generate 100/100"


def test_every_stage_has_a_unit():
    assert set(STAGES) <= set(UNITS)
