"""Killed at any moment, the same command goes on and ends with the same files."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from project import Project, until

TABLE = ("full", "independent", "blind")
PAUSE_S = 0.1

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks at processes through /proc")


def kill(process: subprocess.Popen, whole_group: bool) -> None:
    os.killpg(process.pid, signal.SIGKILL) if whole_group else process.kill()
    process.communicate(timeout=300)


def interrupt(project: Project, task: str, done: int, whole_group: bool) -> None:
    """Start the table and kill it when a `task` has done a few units."""
    process = project.start("run", project.table(*TABLE), "--jobs", "2", pause_s=PAUSE_S)
    try:
        until(lambda: project.has_reached(task, done) or process.poll() is not None)
        assert process.poll() is None, process.communicate()[0]
    finally:
        kill(process, whole_group)


def test_killed_in_each_stage_and_repeated_it_ends_with_the_same_files(project: Project, finished: Project):
    interrupt(project, "train", 4, whole_group=True)
    interrupt(project, "generate", 11, whole_group=False)  # one of two volumes is written
    interrupt(project, "evaluate", 1, whole_group=True)
    made = {path: path.stat().st_mtime_ns for path in project.profile.glob("*/seed0/volumes/*.nii.gz")}
    assert made

    last = project.run("run", project.root / "table.yaml")
    assert last.returncode == 0, last.stdout + last.stderr
    assert {path: path.stat().st_mtime_ns for path in made} == made
    wanted, got = finished.files(), project.files()
    assert got.keys() == wanted.keys()
    assert [path for path in wanted if got[path] != wanted[path]] == []
    assert not list(project.root.rglob(".tmp-*"))
    for steps in project.steps():  # a step is repeated only where the kill fell between doing and saving it
        assert sorted(set(steps)) == list(range(12)) and len(steps) <= 13


def test_redo_of_a_later_stage_keeps_a_training_that_was_begun(project: Project):
    interrupt(project, "train", 4, whole_group=True)
    answer = project.run("run", project.root / "table.yaml", "--redo", "generate")
    assert answer.returncode == 0 and "to be continued" in answer.stdout
    assert all(len(steps) <= 13 for steps in project.steps())


def test_workers_end_when_their_parent_is_killed(project: Project):
    process = project.start("run", project.table("full"), pause_s=1)
    until(lambda: project.has_reached("train", 1))
    children = children_of(process)
    assert children
    kill(process, whole_group=False)
    until(lambda: not any(is_alive(child) for child in children))


def test_a_second_run_is_refused_while_the_first_works(project: Project):
    process = project.start("run", project.table("full"), pause_s=1)

    def full() -> list[str]:
        return project.run("status", project.root / "table.yaml").stdout.splitlines()[2].split()

    try:
        until(lambda: project.has_reached("train", 1))
        os.killpg(process.pid, signal.SIGSTOP)  # a busy machine may take longer over the second than this one trains
        second = project.run("run", project.root / "table.yaml")
        assert second.returncode == 2
        assert "another run works here (process " in second.stderr and f" {process.pid} on " in second.stderr
        assert "; it has " in second.stderr and "wait for it or end it" in second.stderr
        assert full()[:3] == ["full", "done", "running"] and full()[-2:] == ["waiting", "waiting"]
    finally:
        kill(process, whole_group=True)
    assert full()[2] == "stopped"


def test_a_worker_that_dies_costs_its_row_only(project: Project):
    process = project.start("run", project.table("full", "blind"), "--jobs", "2", pause_s=0.05)
    until(lambda: project.has_reached("train", 1))
    worker = next(child for child in children_of(process) if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text())
    os.kill(worker, signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "its process was ended by SIGKILL" in output
    assert project.run("run", project.root / "table.yaml").returncode == 0


def children_of(process: subprocess.Popen) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
