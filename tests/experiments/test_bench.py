"""The bench: rows on one set of weights, speeds scaled by evaluations, checks that can fail."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments import load
from experiments.bench import Timing, lowest, read_plan, rows_of
from experiments.bench_report import _caveats, _speed_checks
from experiments.pipeline import Request
from trace_lightning.anatomy.grid import Grid
from trace_lightning.errors import UserError
from trace_lightning.protocol import Case

ROOT = Path(__file__).parents[2]


def timing(*speeds: float) -> Timing:
    return Timing(6.0, 12, speeds, 0.1, None, "2 volume(s)", {})


def test_every_row_of_the_plan_sets_another_sampler_and_names_rows_that_exist():
    plan = read_plan()
    names = [row.name for row in plan.rows]
    assert len(set(names)) == len(names)
    asked = [plan.literal, plan.abreast, *plan.quality["rows"], plan.quality["against"]]
    asked += [name for row, over, _ in plan.speed for name in (row, over)] + [row.volumes for row in plan.rows]
    asked += [name for caveat in plan.caveats for name in caveat["rows"]]
    assert set(asked) <= set(names)
    assert len({json.dumps(row.keys | row.pinned, sort_keys=True) for row in plan.rows}) == len(names)


def test_rows_that_the_weights_cannot_do_say_why():
    _, rows, refused = rows_of(Request("ours", "smoke"), 0, read_plan())
    assert "train.clean_frame" in refused["sequential_clean"]
    assert rows["brickwork"].experiment.sample.sampler == "brickwork"
    assert rows["algorithm1"].experiment.sample.compile == "off"
    one = {row.experiment.model.num_mask_classes for row in rows.values()}
    assert one == {3}  # one network


@pytest.mark.parametrize("base", ["ours_brickwork", "trace_plus"])
def test_rows_are_what_their_names_say_on_other_weights_too(base):
    _, rows, refused = rows_of(Request(base, "smoke"), 0, read_plan())
    _, of_ours, _ = rows_of(Request("ours", "smoke"), 0, read_plan())
    named = ("sampler", "solver", "all_pairs", "noise_correlation", "timestep_power", "num_inference_steps")
    for name, row in of_ours.items():
        assert name not in refused
        for key in named:
            assert getattr(rows[name].experiment.sample, key) == getattr(row.experiment.sample, key), (name, key)


def test_weights_that_never_saw_guidance_maps_are_no_measure_of_algorithm_1():
    plan = read_plan()
    (said,) = _caveats(plan, rows_of(Request("trace_plus", "smoke"), 0, plan)[0].experiment)
    assert said.startswith("Algorithm 1, DDIM-50, one volume, Algorithm 1") and "no guidance maps" in said
    assert said.endswith("(train.guidance_training=0.0)")
    assert _caveats(plan, rows_of(Request("ours", "smoke"), 0, plan)[0].experiment) == []


def test_the_chosen_row_is_that_of_the_tables():
    _, rows, _ = rows_of(Request("ours", "phantom"), 0, read_plan())
    table = load.load(load.find("ours_brickwork"), "phantom", (), 0)
    assert rows["brickwork_chosen"].experiment.sample == table.experiment.sample


def test_a_method_without_these_samplers_is_refused(tmp_path):
    for part in ("base.yaml", "profiles/smoke.yaml"):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (tmp_path / part).write_text((ROOT / "experiments" / part).read_text())
    (tmp_path / "other.yaml").write_text("name: other\nmethod: ctflow\n")
    with pytest.raises(UserError, match="ctflow has none of the samplers"):
        rows_of(Request(str(tmp_path / "other.yaml"), "smoke"), 0, read_plan())


def test_what_the_command_line_gives_goes_to_all_rows_but_where_a_row_pins_it():
    given = ("sample.compile=reduce-overhead", "sample.num_inference_steps=3", "sample.precision=bfloat16")
    base, rows, _ = rows_of(Request("ours", "smoke", overrides=given), 0, read_plan())
    samples = {name: row.experiment.sample for name, row in rows.items()}
    assert {name for name, sample in samples.items() if sample.compile == "off"} == {"algorithm1"}  # as written
    assert {sample.num_inference_steps for sample in samples.values()} == {3}
    assert {sample.precision for sample in samples.values()} == {"bfloat16"}
    assert base.experiment.sample.compile == "reduce-overhead"


@pytest.mark.parametrize(
    ("fast", "slow", "found", "extent", "holds", "certain"),
    [
        ((30, 42, 32), (10, 12, 8), 3.5, (3.0, 4.0), True, True),  # turn by turn: 3, 3.5, 4
        ((29, 42, 32), (10, 12, 8), 3.5, (2.9, 4.0), True, False),
        ((20, 28, 32), (10, 12, 8), 28 / 12, (2.0, 4.0), False, False),
        ((20, 28, 20), (10, 12, 8), 28 / 12, (2.0, 2.5), False, True),
        ((31,), (10,), 3.1, None, True, False),  # one turn says nothing of how it varies
    ],
)
def test_a_speed_that_is_asked_for_can_fail(fast, slow, found, extent, holds, certain):
    plan = replace(read_plan(), speed=(("fast", "slow", 3.0),))
    (check,) = _speed_checks(plan, {"fast": timing(*fast), "slow": timing(*slow)})
    assert check["found"] == pytest.approx(found) and check["interval"] == (extent and pytest.approx(extent))
    assert (check["holds"], check["certain"]) == (holds, certain)


def test_the_lowest_slices_keep_their_place():
    grid = Grid((4, 2, 2), np.diag([1.0, 1.0, 5.0, 1.0]))
    case = Case("case", "", grid, np.arange(16, dtype=np.uint8).reshape(4, 2, 2))
    some = lowest(case, 3)
    assert some.grid.shape == (3, 2, 2) and np.array_equal(some.grid.affine, grid.affine)
    assert np.array_equal(some.labels, case.labels[:3])
    assert lowest(case, None) is case and lowest(case, 9) is case


@pytest.mark.slow
def test_the_command_writes_what_it_found_and_keeps_what_is_done(tmp_path):
    command = [sys.executable, "-m", "experiments", "bench", "ours", "--profile", "smoke", "--repeats", "1"]
    command += [
        "sample.num_inference_steps=2",
        f"run.runs_dir={tmp_path / 'runs'}",
        f"run.cache_dir={tmp_path / 'cache'}",
    ]
    command += ["run.jobs=1", "train.max_steps=4", "--volumes", "1", "--slices", "6", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "bench.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["algorithm1"]["ratio_to_literal"] == 1
    assert all(row["sample"]["num_inference_steps"] == 2 for row in found["rows"] if "reason" not in row)
    assert "sample.num_inference_steps=2" in found["overrides"]
    assert (
        "in place of what their names say: sample.num_inference_steps=2" in (tmp_path / "out" / "bench.md").read_text()
    )
    assert found["timed"] == {"volumes": 1, "slices": 6, "repeats": 1}
    assert rows["brickwork"]["timed"] == "1 volume(s) of 6 slices"
    assert {row["sample"]["volumes_abreast"] for row in found["rows"] if "reason" not in row} == {1}
    assert rows["brickwork"]["sample"]["tile_batch"] == 12
    assert rows["algorithm1"]["evaluations_per_slice"] == pytest.approx(2 * (2 * 6 - 3) / 6)
    assert rows["brickwork_tiles"]["evaluations_per_slice"] == pytest.approx(
        (3 + 4) / 6
    )  # pairs that tile, shifted at last
    assert rows["brickwork"]["evaluations_per_slice"] == pytest.approx((3 + 5) / 6)  # all pairs at last
    assert rows["brickwork"]["slices_per_second"] > 0 and rows["brickwork"]["quality"]["dice"] >= 0
    assert "reason" in rows["sequential_clean"]
    assert {check["what"] for check in found["checks"]} >= {"brickwork at least 15 x algorithm1_abreast"}
    assert (tmp_path / "out" / "bench.md").is_file() and (tmp_path / "out" / "bench.png").stat().st_size > 10_000
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "to do" not in again.stdout
