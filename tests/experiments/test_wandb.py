"""A whole run under W&B without a server or a network, and the same commands where W&B is not installed."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from offline_runs import OfflineRun, offline_runs
from project import ROOT, Project

from experiments.dashboard import build, names, read
from experiments.load import load
from trace_lightning.artifacts import file_digest, read_json
from trace_lightning.errors import UserError

NEW_NETWORK = ["unshare", "-n"]  # a network namespace of its own, with no way out; only root may
COUNTERS = "cat /proc/net/snmp"
REACH_OUT = "import socket\ntry: socket.create_connection(('192.0.2.1', 80), 1)\nexcept OSError: pass"
BLOCKED = "import sys\nsys.modules['wandb'] = None\n"


def can_leave_the_network() -> bool:
    try:
        return subprocess.run([*NEW_NETWORK, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


def attempts(snmp: str) -> int:
    """Return how often anything in a network namespace without routes tried to reach another machine."""
    lines = iter(snmp.splitlines())
    tables = {}
    for head, values in zip(lines, lines, strict=True):
        protocol, *names = head.split()
        tables[protocol] = dict(zip(names, map(int, values.split()[1:]), strict=True))
    return tables["Ip:"]["OutNoRoutes"] + tables["Udp:"]["OutDatagrams"] + tables["Tcp:"]["ActiveOpens"]


@dataclass(frozen=True)
class Whole:
    folder: Path
    runs: dict[tuple[str, str], OfflineRun]  # by row and job type
    attempts: int | None  # to reach another machine; None where that cannot be watched here


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Whole:
    """Ours on the smoke profile, from preparing to the printed table."""
    folder = tmp_path_factory.mktemp("whole")
    keys = ["run.wandb=offline", "run.wandb_artifacts=[weights,volumes]", "run.jobs=1"]
    keys += [f"run.runs_dir={folder / 'runs'}", f"run.cache_dir={folder / 'cache'}"]
    command = [sys.executable, "-m", "experiments", "run", "ours", "--profile", "smoke", *keys]
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    watched = can_leave_the_network()
    script = ["bash", "-c", f'"$@" >"{folder}/out" 2>&1 && {COUNTERS}', "watch", *command]
    done = subprocess.run([*(NEW_NETWORK if watched else []), *script], capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, (folder / "out").read_text()
    runs = offline_runs(folder)
    named = {(run.records["run"][0]["display_name"], run.job_type): run for run in runs}
    assert len(named) == len(runs)
    return Whole(folder / "runs" / "smoke", named, attempts(done.stdout) if watched else None)


@pytest.mark.slow
def test_nothing_but_this_machine_is_asked(whole):
    if whole.attempts is None:
        pytest.skip("a network namespace of one's own needs root")
    assert whole.attempts == 0
    script = ["bash", "-c", f'"$@"; {COUNTERS}', "watch", sys.executable, "-c", REACH_OUT]
    assert attempts(subprocess.run([*NEW_NETWORK, *script], capture_output=True, text=True).stdout) == 1


@pytest.mark.slow
def test_each_stage_of_each_row_is_a_run_of_the_tables_group(whole):
    assert set(whole.runs) == {
        ("ours seed0", "train"),
        ("ours seed0", "generate"),
        ("ours seed0", "evaluate"),
        ("ours seed0", "table"),
        ("ground_truth seed0", "evaluate"),
    }
    assert {run.group for run in whole.runs.values()} == {"ours"}
    assert all(run.records["exit"][0].get("exit_code", 0) == 0 for run in whole.runs.values())
    config = load("ours", "smoke").experiment
    for run in whole.runs.values():
        assert run.config["data"]["skips"] == config.data.skips
        assert run.config["train"]["lr"] == config.train.lr


@pytest.mark.slow
def test_pictures_of_the_test_cases_are_those_on_disk(whole):
    run = whole.runs["ours seed0", "generate"]
    ((paths,), (captions,)) = run.values("volumes.filenames"), run.values("volumes.captions")
    assert captions == ["valid_1_a_1", "valid_2_a_1"]
    for case_id, path in zip(captions, paths, strict=True):
        assert file_digest(run.file(path)) == file_digest(whole.folder / "ours/seed0/panels" / f"{case_id}.png")


@pytest.mark.slow
def test_scores_are_the_summary_and_a_table_with_pictures(whole):
    for row in ("ours", "ground_truth"):
        run, folder = whole.runs[f"{row} seed0", "evaluate"], whole.folder / row
        folder = folder if row == "ground_truth" else folder / "seed0"
        metrics = read_json(folder / "scores/summary.json")["metrics"]
        known = {f"score/{name}": entry["value"] for name, entry in metrics.items() if entry["value"] is not None}
        assert {key: value for key, value in run.history[0].items() if key.startswith("score/")} == pytest.approx(known)
        assert (
            run.records["summary"][-1]["update"].get("score/dice", run.values("score/dice")[0]) == known["score/dice"]
        )
        table = json.loads(run.file(run.values("scores.path")[0]).read_text())
        with (folder / "scores/per_case.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        assert table["columns"][:2] == ["case_id", "picture"]
        assert [line[0] for line in table["data"]] == [line["case_id"] for line in lines]
        dice = table["columns"].index("dice")
        assert [line[dice] for line in table["data"]] == [float(line["dice"]) for line in lines]
        (stored,) = [artifact for artifact in run.records["artifact"] if artifact["name"].endswith("-scores")]
        stored = [Path(entry["path"]).name for entry in stored["manifest"]["contents"]]
        assert set(stored) == {"scores.table.json", *(f"{line['case_id']}.png" for line in lines)}


@pytest.mark.slow
def test_the_printed_table_is_a_table_of_its_rows(whole):
    run = whole.runs["ours seed0", "table"]
    table = json.loads(run.file(run.values("table.path")[0]).read_text())
    assert [line[0] for line in table["data"]] == ["GT", "ours"]
    with (whole.folder / "ours/table.csv").open(newline="") as file:
        cells = {(cell["row"], cell["column"]): cell["value"] for cell in csv.DictReader(file)}
    jaccard = table["columns"].index("jaccard")
    assert [line[jaccard] for line in table["data"]] == [float(cells[row, "jaccard"]) for row in ("GT", "ours")]
    assert file_digest(run.file(run.values("montage.path")[0])) == file_digest(whole.folder / "ours/montage.png")


@pytest.mark.slow
def test_weights_and_volumes_are_attached_where_they_are_asked_for(whole):
    found = {name: files for run in whole.runs.values() for name, files in run.artifacts.items()}
    assert found["ours-seed0-weights"] == ["model.safetensors"]
    assert {"valid_1_a_1.nii.gz", "valid_2_a_1.nii.gz"} <= set(found["ours-seed0-volumes"])


@pytest.mark.slow
def test_every_panel_of_the_dashboard_shows_what_a_run_logs(whole):
    logged = {name for run in whole.runs.values() for name in run.names}
    assert names() <= logged
    assert {"train/loss", "val/loss", "samples", "volumes", "scores", "table", "score/dice"} <= names()


def test_a_dashboard_is_refused_with_the_reason(tmp_path):
    with pytest.raises(UserError, match="named ENTITY/PROJECT"):
        build("somewhere")
    path = tmp_path / "dashboard.yaml"
    path.write_text("name: A\nsections: [{name: B, panels: [{kind: LinePlot, x: trainer/global_step}]}]\n")
    with pytest.raises(UserError, match="LinePlot with x, y"):
        list(read(path))


def test_the_workspace_is_made_of_the_files_panels(monkeypatch):
    workspaces = pytest.importorskip("wandb_workspaces.workspaces", reason="wandb-workspaces is not installed")
    assert isinstance(build("team/project"), workspaces.Workspace)
    drawn = {section.name: len(section.panels) for section in build("team/project").sections}
    assert drawn == {title: len(panels) for title, panels in read()}


@pytest.fixture
def without_wandb(project: Project, tmp_path) -> None:
    """Let every Python that this test starts find no package wandb."""
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(BLOCKED)
    project.variables["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "blocked"), str(ROOT)])


def test_without_the_package_runs_and_tables_work_and_asking_for_it_is_refused(project: Project, without_wandb):
    table = project.table("full", "blind")
    asked = project.run("run", table, "run.wandb=offline")
    assert asked.returncode == 2 and "run.wandb=offline needs the package wandb" in asked.stderr
    assert not project.trainings()
    for command in (["run", table], ["status", table]):
        done = project.run(*command)
        assert done.returncode == 0, done.stderr
    plotted = project.run("plot", table)  # the fake method leaves no curves
    assert plotted.returncode == 2 and "nothing was trained yet" in plotted.stderr


def test_under_an_agent_the_row_has_one_run_and_the_real_volumes_none(project: Project, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep7")
    monkeypatch.setenv("WANDB_RUN_ID", "agents0")
    monkeypatch.setattr("project.COLUMNS", "columns: [dice]\n")
    done = project.run("run", project.root / "full.yaml", "run.wandb=offline")
    assert done.returncode == 0, done.stderr
    runs = offline_runs(project.root)
    assert {run.run_id for run in runs} == {"agents0"} and {run.job_type for run in runs} == {"sweep"}
    (dice,) = [value for run in runs for value in run.values("score/dice")]
    assert dice == read_json(project.profile / "full/seed0/scores/summary.json")["metrics"]["dice"]["value"]
    assert any("volumes" in run.names for run in runs)
