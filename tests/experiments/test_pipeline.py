"""The pipeline over a method that only pretends to learn: what is done, shared, kept, refused and told."""

from __future__ import annotations

import re
import shutil

import pytest
from project import Project, write_tree

from trace_lightning.artifacts import read_json
from trace_lightning.config import read_experiment


@pytest.fixture
def copy(finished: Project, tmp_path) -> Project:
    """A finished project that may be changed."""
    project = Project(tmp_path / "copy", finished.tree)
    for name in ("runs", "cache"):
        shutil.copytree(finished.root / name, project.root / name)
    project.table("full", "independent", "blind")
    return project


def test_a_run_says_what_it_will_do_and_what_it_costs_first(finished: Project):
    lines = finished.output.stdout.splitlines()
    assert lines[0] == "2 trainings for 4 rows, 2 at a time:"
    assert "  train full, independent (4 + 1 volumes): to do" in lines
    assert "  train blind (4 + 1 volumes): to do" in lines
    assert "  test: 2 volumes of about 10 slices" in lines
    estimate = next(i for i, line in enumerate(lines) if line.startswith("  estimate: about "))
    assert all(unit in lines[estimate] for unit in ("GB of disk", "GB of memory in 2 processes"))
    assert estimate < next(i for i, line in enumerate(lines) if "prepare done" in line)


def test_rows_with_the_same_training_share_it(finished: Project):
    assert finished.steps() == [list(range(12))] * 2
    full, independent, blind = (
        read_json(finished.profile / name / "seed0" / "train" / "training.json")
        for name in ("full", "independent", "blind")
    )
    assert full == independent != blind
    folder = finished.profile / "full" / "seed0" / "train" / full["folder"]
    assert (folder / "model.safetensors").is_file() and folder.name == full["digest"]


def test_every_row_leaves_config_environment_volumes_and_scores(finished: Project):
    for name in ("full", "independent", "blind"):
        run = finished.profile / name / "seed0"
        assert read_experiment(run / "config.yaml").name == name
        env = read_json(run / "env.json")
        assert env["packages"]["numpy"] and env["processor"]
        assert sorted(path.name for path in (run / "volumes").iterdir()) == [
            "valid_1_a_1.json", "valid_1_a_1.nii.gz", "valid_2_a_1.json", "valid_2_a_1.nii.gz"
        ]  # fmt: skip
        assert read_json(run / "scores" / "summary.json")["n"] == 2
    truth = finished.profile / "ground_truth"
    assert read_json(truth / "scores" / "summary.json")["metrics"]["dice"]["value"] == 1
    assert len(list((truth / "masks").iterdir())) == 2


def test_preparing_says_how_much_disk_it_takes(finished: Project):
    for stamp in (finished.profile / "prepared").rglob("prepare.json"):
        assert re.search(
            r"preparing takes \d+\.\d MB in \S+, where .* are free", (stamp.parent / "run.log").read_text()
        )


def test_provenance_says_how_a_volume_was_made(finished: Project):
    made = read_json(finished.profile / "full" / "seed0" / "volumes" / "valid_1_a_1.json")
    assert (made["experiment"], made["seed"], made["inputs"]) == ("full", 0, ["mask", "text", "length"])
    assert (made["num_slices"], made["evaluations_per_slice"], made["peak_memory_bytes"]) == (10, 6.0, 2000)
    assert made["sample"]["sample"]["sampler"] == "overlap" and made["train_peak_memory_bytes"] == 1000
    assert "random weights" in made["text"] and "numpy" in made["packages"]
    blind = read_json(finished.profile / "blind" / "seed0" / "volumes" / "valid_1_a_1.json")
    assert (blind["inputs"], blind["prompt"], blind["text"]) == (["length"], "", "no text")
    assert made["case_seed"] == blind["case_seed"] != made["seed"]


def test_the_table_is_printed_and_written(finished: Project):
    assert "A table" in finished.output.stdout and "independent" in finished.output.stdout
    assert {"table.md", "table.csv", "table.tex"} <= {path.name for path in (finished.profile / "table").iterdir()}


def test_repeated_nothing_is_done(finished: Project):
    before = {path: path.stat().st_mtime_ns for path in finished.profile.rglob("*.json")}
    again = finished.run("run", finished.root / "table.yaml")
    assert again.returncode == 0
    assert "estimate" not in again.stdout and "done" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    table = again.stdout[again.stdout.index("A table") :]
    assert finished.output.stdout.endswith(table)


def test_status_shows_rows_and_stages(finished: Project, project: Project):
    lines = [line.split() for line in finished.run("status", finished.root / "table.yaml").stdout.splitlines()]
    assert lines[0] == ["row", "prepare", "train", "generate", "evaluate"]
    assert lines[1] == ["ground_truth", "done"]
    assert lines[2:] == [[name, *["done"] * 4] for name in ("full", "independent", "blind")]
    fresh = project.run("status", project.table("full")).stdout.splitlines()
    assert fresh[2].split() == ["full", "-", "-", "-", "-"]


def test_a_dry_run_does_nothing(project: Project):
    answer = project.run("run", project.table("full"), "--dry-run")
    assert answer.returncode == 0 and "train full (4 + 1 volumes): to do" in answer.stdout
    assert "estimate: about" in answer.stdout
    assert not list(project.root.rglob("*.nii.gz")) and not list(project.root.rglob("trainings"))


def test_changed_keys_stop_the_run_before_anything_is_done(copy: Project):
    text = (copy.root / "profiles" / "tiny.yaml").read_text()
    (copy.root / "profiles" / "tiny.yaml").write_text(text.replace("max_steps: 12", "max_steps: 13"))
    answer = copy.run("run", copy.root / "table.yaml")
    assert answer.returncode == 2
    assert "train.max_steps: 12 -> 13" in answer.stderr and "--redo generate" in answer.stderr
    assert len(copy.trainings()) == 2
    redone = copy.run("run", copy.root / "table.yaml", "--redo", "generate")
    assert redone.returncode == 0, redone.stderr
    assert sorted(len(s) for s in copy.steps()) == [12, 12, 13, 13]


def test_redo_does_a_stage_and_those_after_it_again(copy: Project):
    before = copy.files()
    volume = copy.profile / "full" / "seed0" / "volumes" / "valid_1_a_1.nii.gz"
    made_at = volume.stat().st_mtime_ns
    answer = copy.run("run", copy.root / "table.yaml", "--redo", "generate")
    assert answer.returncode == 0 and "generate done" in answer.stdout and "train done" not in answer.stdout
    assert volume.stat().st_mtime_ns > made_at
    assert copy.files() == before
    assert copy.steps() == [list(range(12))] * 2


def test_volumes_that_are_there_are_kept_when_one_is_made_again(copy: Project):
    lost, kept = (copy.profile / "blind" / "seed0" / "volumes" / f"valid_{n}_a_1.nii.gz" for n in (1, 2))
    content, kept_at = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    for stamp in ("generate.json", "evaluate.json"):
        (copy.profile / "blind" / "seed0" / stamp).unlink()
    assert copy.run("run", copy.root / "table.yaml").returncode == 0
    assert lost.read_bytes() == content and kept.stat().st_mtime_ns == kept_at


def test_overrides_go_to_scratch_with_a_table_of_their_own(copy: Project):
    before = copy.files()
    answer = copy.run("run", copy.root / "full.yaml", "sample.gamma=3")
    assert answer.returncode == 0, answer.stderr
    (scratch,) = (copy.root / "runs" / "scratch").iterdir()
    assert f"results go to {scratch / 'tiny'}, no table reads them" in answer.stdout
    assert read_experiment(scratch / "tiny" / "full" / "seed0" / "config.yaml").sample.gamma == 3
    assert (scratch / "tiny" / "full" / "table.md").is_file()
    assert copy.files() == before


def test_another_seed_is_another_run(copy: Project):
    before = copy.files()
    answer = copy.run("run", copy.root / "full.yaml", "--seed", "1")
    assert answer.returncode == 0, answer.stderr
    first, second = (copy.profile / "full" / f"seed{k}" / "volumes" / "valid_1_a_1.nii.gz" for k in (0, 1))
    assert first.read_bytes() != second.read_bytes()
    assert copy.files().items() >= before.items()


def test_several_seeds_share_what_no_seed_changes_and_end_in_one_table(copy: Project):
    before = copy.files()
    dry = copy.run("run", copy.root / "table.yaml", "--seeds", "0", "1", "--dry-run")
    assert "train full (seed 0), independent (seed 0) (4 + 1 volumes): done" in dry.stdout
    assert "train full (seed 1), independent (seed 1) (4 + 1 volumes): to do" in dry.stdout
    answer = copy.run("run", copy.root / "table.yaml", "--seeds", "0", "1", "--jobs", "2")
    assert answer.returncode == 0, answer.stderr
    done = [line.split("] ")[1] for line in answer.stdout.splitlines() if line.startswith("[") and " done (" in line]
    assert {line.split(": ")[1].split()[0] for line in done} == {"train", "generate", "evaluate"}  # prepared it was
    assert len(done) == 2 + 3 + 3 and all("(seed 1)" in line for line in done)
    assert "seeds 0, 1: mean ± standard deviation" in answer.stdout
    assert copy.files().items() >= before.items() and copy.steps() == [list(range(12))] * 4
    status = copy.run("status", copy.root / "table.yaml", "--seeds", "0", "1").stdout.splitlines()
    rows = ["ground_truth", *(f"{row} (seed {k})" for row in ("full", "independent", "blind") for k in (0, 1))]
    assert [line.split("  ")[0] for line in status[1:]] == rows
    assert all(line.split()[-4:] == ["done"] * 4 for line in status[2:])


def test_a_seed_that_is_named_twice_is_refused(finished: Project):
    answer = finished.run("run", finished.root / "table.yaml", "--seeds", "1", "1")
    assert answer.returncode == 2 and "seeds 1, 1: one is named twice" in answer.stderr


def test_a_broken_and_an_impossible_row_stop_no_other(project: Project):
    table = project.table("greedy", "broken", "half")
    answer = project.run("run", table)
    assert answer.returncode == 1
    assert read_json(project.profile / "half" / "seed0" / "scores" / "summary.json")["n"] == 2
    reason = "asks for 40 training patients (data.num_train_patients x data.train_fraction); 5 are there"
    assert reason in read_json(project.profile / "greedy" / "seed0" / "unavailable.json")["reason"]
    assert f"greedy: {reason}" in answer.stdout
    (log,) = [path for path in project.profile.glob("trainings/*/run.log") if "meant to break" in path.read_text()]
    assert "ZeroDivisionError" in log.read_text()
    assert f"error: broken: it ended with an unexpected error (see {log})" in answer.stderr
    status = project.run("status", table).stdout
    lines = [line.split() for line in status.splitlines()]
    assert lines[2] == ["greedy", *["unavailable"] * 4]
    assert lines[3] == ["broken", "done", "failed", "blocked", "blocked"]
    assert f"it ended with an unexpected error ({log})" in status and "    ZeroDivisionError: this row" in status

    without_broken = project.run("run", project.table("greedy", "half"))
    assert without_broken.returncode == 0 and "estimate" not in without_broken.stdout
    assert f"greedy: {reason}" in without_broken.stdout
    (project.root / "greedy.yaml").write_text("name: greedy\nmethod: fake\ndata: {num_train_patients: 3}\n")
    mended = project.run("run", project.root / "table.yaml")
    assert mended.returncode == 0 and "greedy: evaluate done" in mended.stdout
    assert not list(project.profile.glob("greedy/*/unavailable.json"))


def test_bad_data_ends_with_code_2_and_one_message(project: Project, tmp_path):
    project.tree = write_tree(tmp_path / "bad")
    for path in (project.tree / "dataset" / "train_fixed").rglob("*.nii.gz"):
        path.write_bytes(path.read_bytes()[:300])
    answer = project.run("run", project.table("full", "half"))
    assert answer.returncode == 2
    (message,) = answer.stderr.splitlines()
    assert message.startswith("error: ") and "may be truncated" in message
    assert "Traceback" not in answer.stdout and "A table" not in answer.stdout


def test_a_missing_volume_is_said_before_anything_starts(project: Project, tmp_path):
    project.tree = write_tree(tmp_path / "bad")
    next((project.tree / "dataset" / "valid_fixed").rglob("*.nii.gz")).unlink()
    answer = project.run("run", project.table("full"))
    assert answer.returncode == 2 and "is listed in" in answer.stderr


def test_rows_that_are_tested_on_other_data_are_refused(project: Project):
    (project.root / "other.yaml").write_text("name: other\nmethod: fake\ndata: {min_slices: 4}\n")
    answer = project.run("run", project.table("full", "other"))
    assert answer.returncode == 2
    assert "full and other are tested on different data (data.min_slices: 8 and 4)" in answer.stderr
