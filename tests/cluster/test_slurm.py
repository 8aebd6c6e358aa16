"""A real Slurm: arrays, and jobs that are warned, run out of time or lose their node end as if nothing had happened."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from local_slurm import REQUEUE_DELAY_S
from project import Project, until, write_tree

from evaluation.rows import COSTS
from trace_lightning.artifacts import read_json

ROOT = Path(__file__).parents[2]
TABLE = ("full", "blind")
SEEDS = "--seeds", "0", "1"
PAUSE_S = 2.0

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


class Cluster:
    """Commands of the Slurm that runs for the tests."""

    def __init__(self, environment: dict[str, str]):
        self.environment = environment

    def ask(self, *command: str) -> str:
        answer = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, check=True, timeout=60
        )
        return answer.stdout

    def jobs(self) -> dict[str, tuple[str, str]]:
        """Return job -> its name and state, of those that have not ended."""
        lines = [line.split() for line in self.ask("squeue", "-h", "-r", "-o", "%i %j %T").splitlines()]
        return {number: (name, state) for number, name, state in lines}

    def running(self, stage: str) -> list[str]:
        return [number for number, (name, state) in self.jobs().items() if name.endswith(stage) and state == "RUNNING"]

    def restarts(self, job: str) -> int:
        return int(re.search(r"Restarts=(\d+)", self.ask("scontrol", "show", "job", job))[1])

    def warn(self, job: str) -> None:
        """Send a job the signal that Slurm sends before its time is over."""
        # scancel sends it again 5 s later where the job was quick to be queued again
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(["scancel", "--signal=USR1", job], env=os.environ | self.environment, timeout=3)

    def lose_node(self) -> None:
        """Let the node fail, and be there again."""
        node = f"NodeName={self.ask('sinfo', '-h', '-N', '-o', '%N').strip()}"
        self.ask("scontrol", "update", node, "State=DOWN", "Reason=test")
        time.sleep(REQUEUE_DELAY_S)
        self.ask("scontrol", "update", node, "State=RESUME")

    def until_idle(self, seconds: float) -> None:
        until(lambda: not self.jobs(), seconds)


@pytest.fixture
def cluster(slurm_environment) -> Cluster:
    return Cluster(slurm_environment)


def submitted(project: Project, *arguments: str, pause_s: float = PAUSE_S) -> str:
    answer = project.run("submit", project.table(*TABLE), *SEEDS, *arguments, pause_s=pause_s)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def printed(project: Project) -> str:
    (folder,) = (project.profile / "submissions").iterdir()
    (number,) = read_json(folder / "jobs.json")["table"]
    return (folder / "jobs" / f"{number}_0_log.out").read_text()


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Project:
    """The same table, run without interruption and without Slurm."""
    project = Project(tmp_path_factory.mktemp("reference") / "project", write_tree(tmp_path_factory.mktemp("ct")))
    answer = project.run("run", project.table(*TABLE), *SEEDS, "--jobs", "2")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return project


@pytest.fixture
def project(tmp_path, reference, slurm_environment) -> Project:
    project = Project(tmp_path / "project", reference.tree)
    project.variables = slurm_environment
    return project


def same(project: Project, reference: Project) -> None:
    wanted, got = reference.files(), project.files()
    assert got.keys() == wanted.keys()
    assert [path for path in wanted if got[path] != wanted[path]] == []
    assert (project.profile / "table" / "table.csv").read_text() == (
        reference.profile / "table" / "table.csv"
    ).read_text()


def test_an_array_of_two_seeds_ends_in_the_table_whatever_happens_to_its_jobs(project, reference, cluster):
    # Slurm looks every 30 s, so that a row is warned after 50 to 80 s: it takes more, and a volume or score 20
    submitted(project, "slurm.row.time=3", "slurm.row.signal_delay_s=100")
    shown = project.run("status", project.table(*TABLE), *SEEDS).stdout
    assert re.search(r"full \(seed 1\) .* queued +queued\n", shown), shown

    until(lambda: project.has_reached("train", 2), seconds=300)
    warned = cluster.running("-train")[0]
    cluster.warn(warned)
    until(lambda: cluster.restarts(warned) == 1, seconds=120)

    until(lambda: project.has_reached("train", 3), seconds=300)
    lost = cluster.running("-train")
    cluster.lose_node()
    until(lambda: all(cluster.restarts(job) >= 1 for job in lost), seconds=120)

    until(lambda: cluster.running("-row"), seconds=300)
    rows = cluster.jobs()
    cluster.until_idle(1200)
    assert any(cluster.restarts(job) for job, (name, _) in rows.items() if name.endswith("-row"))
    same(project, reference)
    assert "seeds 0, 1: mean ± standard deviation" in printed(project)
    assert all(sorted(set(steps)) == list(range(12)) for steps in project.steps())


def test_a_row_that_fails_leaves_the_table_to_the_others(project, cluster):
    answer = project.run("submit", project.table("broken", "half"))
    assert answer.returncode == 0, answer.stderr
    cluster.until_idle(600)
    text = printed(project)
    assert "A table" in text and re.search(r"broken +done +failed +blocked +blocked", text)
    assert "ZeroDivisionError: this row is meant to break" in text


def test_a_real_training_that_is_warned_goes_on_where_it_was(tmp_path, cluster, slurm_environment):
    """Ours in the smoke profile: saved between two steps, and the same weights, volumes and scores in the end."""
    keys = [
        "train.max_steps=60",
        "train.checkpoint_every_steps=1000",
        "data.num_train_patients=4",
        "evaluate.metrics=[dice]",
    ]

    def command(verb: str, folder: Path, *more: str) -> None:
        places = [f"run.runs_dir={folder}", f"run.cache_dir={tmp_path / 'cache'}"]
        arguments = [sys.executable, "-m", "experiments", verb, "experiments/ours.yaml", "--profile", "smoke", *more]
        environment = (
            os.environ | slurm_environment | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        )
        done = subprocess.run([*arguments, *keys, *places], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    command("run", tmp_path / "whole")
    command("submit", tmp_path / "warned")

    def step() -> int:
        found = [read_json(path) for path in (tmp_path / "warned").rglob("trainings/*/progress.json")]
        return found[0]["done"] if found else 0

    until(lambda: step() >= 5, seconds=600)
    (job,) = cluster.running("-train")
    cluster.warn(job)
    until(lambda: cluster.restarts(job) == 1, seconds=120)
    saved = list((tmp_path / "warned").rglob("trainings/*/*.ckpt"))
    assert saved, "nothing to go on from"
    cluster.until_idle(900)
    made = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob(kind)}
        for kind in ("model.safetensors", "*.nii.gz")
        for name in ("whole", "warned")
    ]
    assert made[0] and made[0] == made[1] and made[2] and made[2] == made[3]
    scores = [
        {key: entry for key, entry in read_json(path)["metrics"].items() if key not in COSTS}
        for name in ("whole", "warned")
        for path in (tmp_path / name).rglob("ours/*/scores/summary.json")
    ]
    assert len(scores) == 2 and scores[0] == scores[1]
