"""Submitting without Slurm: what would be asked of it, and the same jobs in this process and in local ones."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from project import Project, until

from experiments import job, pipeline, slurm, status, submit
from experiments.pipeline import Request
from trace_lightning.artifacts import read_json, write_json
from trace_lightning.errors import UserError

STAGES = ("prepare", "reference", "train", "row", "table")


def request(project: Project, *seeds: int) -> Request:
    places = (f"run.runs_dir={project.root / 'runs'}", f"run.cache_dir={project.root / 'cache'}")
    table = project.table("full", "independent", "blind")
    return Request(str(table), "tiny", seeds, (*places, f"data.root={project.tree}"))


def test_a_job_for_each_training_and_each_row_and_seed(project: Project):
    resolved = pipeline.resolve(request(project, 0, 1))
    jobs = submit.jobs_of(resolved, resolved.tasks)
    assert {stage: len(of_stage) for stage, of_stage in jobs.items()} == {
        "prepare": 1, "reference": 1, "train": 4, "row": 6, "table": 1
    }  # fmt: skip
    assert [task.name for task in jobs["reference"][0]] == ["reference", "evaluate"]
    assert all([task.name for task in tasks] == ["generate", "evaluate"] for tasks in jobs["row"])
    assert [tasks[0].rows for tasks in jobs["row"]][::3] == [("full (seed 0)",), ("full (seed 1)",)]
    named = [task.key for tasks in jobs.values() for one in tasks for task in one]
    assert len(named) == len(set(named)) == len(resolved.tasks)
    for stage, tasks in jobs.items():  # what a job needs is in it, or in a stage that has ended before
        before = {task.key for name in submit.BEFORE[stage] for one in jobs[name] for task in one}
        assert all(need in one or need.key in before for one in tasks for task in one for need in task.needs)


def test_keys_of_slurm():
    given = ["slurm.partition=gpu", "slurm.time=1:30:00", "slurm.row.time=90", "slurm.setup=[module load a, b]"]
    parameters = slurm.parse([*given, "slurm.exclusive=true"], STAGES)
    assert parameters["train"] == {
        "partition": "gpu", "time": "1:30:00", "setup": ["module load a", "b"], "exclusive": True
    }  # fmt: skip
    assert parameters["row"]["time"] == 90
    assert slurm.parse(["slurm.mem=0", "slurm.row.mem=16GB"], STAGES)["train"] == {"mem": 0}
    more = ["slurm.time=2-00:30", "slurm.gpus_per_node=a100:2", "slurm.srun_args=--mpi=none"]
    assert slurm.parse(more, STAGES)["row"] == {
        "time": "2-00:30", "gpus_per_node": "a100:2", "srun_args": ["--mpi=none"]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("slurm.partitoin=gpu", "did you mean slurm.partition?"),
        ("slurm.rows.time=3", "with one of prepare, reference, train, row, table"),
        ("slurm.dependency=afterok:1", "no such key"),
        ("slurm.time", "slurm.KEY=VALUE"),
        ("slurm.setup=[a", "not readable as YAML"),
        ("slurm.setup=[a, 3]", "a list of texts"),
        ("slurm.additional_parameters=5", "a mapping"),
        ("slurm.partition=", "takes something"),
        *((f"slurm.{key}=0", "a whole number above 0") for key in ("nodes", "cpus_per_task", "signal_delay_s")),
        ("slurm.gpus_per_node=two", "TYPE:NUMBER"),
        *((f"slurm.mem={size}", "a size: 16G") for size in ("much", "-1G", "16GiB")),
        *((f"slurm.time={time}", "hours:minutes") for time in ("abc", "-5", "0", "1:")),
    ],
)
def test_a_wrong_key_of_slurm_is_refused(finished: Project, pair: str, said: str):
    with pytest.raises(UserError, match="slurm") as refused:
        slurm.parse([pair], STAGES)
    assert pair in str(refused.value) and said in str(refused.value)


def test_print_shows_what_would_be_submitted_and_submits_nothing(project: Project):
    table = request(project, 0).target
    keys = "slurm.partition=gpu", "slurm.gpus_per_node=1", "slurm.row.time=1:30:00", "slurm.setup=[module load cuda]"
    answer = project.run("submit", table, "--print", "--seeds", "0", "1", *keys)
    assert answer.returncode == 0, answer.stderr
    scripts = {stage: answer.stdout.split(f"# {stage}: ")[1].split("#!/bin/bash")[1] for stage in STAGES}
    for stage, script in scripts.items():
        assert "#SBATCH --requeue\n" in script and "#SBATCH --signal=USR1@120\n" in script, stage
        assert "#SBATCH --partition=gpu\n" in script and "\nmodule load cuda\nexport OMP_NUM_THREADS=1\n" in script
        assert ("--gpus-per-node" in script) == (stage != "table")
        assert "submitit.core._submit" in script and "srun" in script
    assert "--array=0-3%4\n" in scripts["train"] and "--array=0-5%6\n" in scripts["row"]
    assert "--time=1:30:00\n" in scripts["row"] and "--time=240\n" in scripts["train"]
    assert (
        "--dependency=afterany:prepare:reference:train\n" in scripts["row"] and "dependency" not in scripts["prepare"]
    )
    assert "--dependency=afterany:prepare:reference:train:row\n" in scripts["table"]
    assert not (project.root / "runs").exists()


def test_status_tells_what_waits_in_the_queue(project: Project, tmp_path, monkeypatch):
    asked = request(project, 0)
    resolved = pipeline.resolve(asked)
    submission = {"prepare": ["7"], "train": ["8_0", "8_1"], "row": ["9_0", "9_1", "9_2"]}
    jobs = submit.jobs_of(resolved, resolved.tasks)
    names = {stage: [[[task.name, str(task.folder)] for task in one] for one in jobs[stage]] for stage in submission}
    folder = resolved.folders.profile / "submissions" / "one"
    write_json(folder / "submission.json", {"stages": names})
    write_json(folder / "jobs.json", submission)
    squeue = tmp_path / "squeue"
    squeue.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nprintf "8_1\\n9_0\\n"\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    lines = {line.split()[0]: line.split()[1:] for line in status.status(asked).splitlines()}
    assert "--jobs=7,8_0,8_1,9_0,9_1,9_2" in (tmp_path / "asked").read_text()
    assert lines["full"] == ["-", "-", "queued", "queued"]
    assert lines["independent"] == ["-", "-", "-", "-"]
    assert lines["blind"] == ["-", "queued", "-", "-"]
    squeue.write_text("#!/bin/sh\nexit 1\n")  # as it does where all of the jobs ended long ago
    assert "queued" not in status.status(asked)


def test_slurm_is_asked_for_by_name(project: Project):
    for arguments in (("--print", "--cluster", "local"), ("slurm.time=3", "--cluster", "debug")):
        answer = project.run("submit", request(project, 0).target, *arguments)
        assert answer.returncode == 2 and f"{arguments[0]} is for --cluster slurm" in answer.stderr


def test_in_this_process_and_in_local_ones_it_ends_as_a_run_does(project: Project, finished: Project):
    answer = project.run("submit", request(project, 0).target, "--cluster", "debug")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert project.files() == finished.files() and "A table" in answer.stdout
    assert not (project.profile / "submissions").exists()  # nothing was handed to another process

    second = project.run(
        "submit", project.root / "table.yaml", "--cluster", "local", "--jobs", "2", "--seeds", "0", "1"
    )
    assert second.returncode == 0, second.stdout + second.stderr
    assert "train full (seed 0), independent (seed 0) (4 + 1 volumes): done" in second.stdout
    assert "full (seed 1): evaluate done" in second.stdout and "seeds 0, 1: mean ±" in second.stdout
    assert project.files().items() >= finished.files().items() and project.steps() == [list(range(12))] * 4
    (folder,) = (project.profile / "submissions").iterdir()
    assert read_json(folder / "code.json")["files"] and (folder / "config" / "full-seed1.yaml").is_file()
    assert len(read_json(folder / "submission.json")["stages"]["all"][0]) == 2 + 2 * 3


def test_a_row_that_breaks_stops_no_other_and_says_why(project: Project):
    answer = project.run("submit", project.table("greedy", "broken", "half"), "--cluster", "local", "--jobs", "2")
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert read_json(project.profile / "half" / "seed0" / "scores" / "summary.json")["n"] == 2
    lines = [line.split() for line in answer.stdout.splitlines()]
    assert ["broken", "done", "failed", "blocked", "blocked"] in lines
    assert ["greedy", *["unavailable"] * 4] in lines
    assert "    ZeroDivisionError: this row is meant to break" in answer.stdout
    (project.root / "broken.yaml").write_text("name: broken\nmethod: fake\ntrain: {weight_decay: 0.1}\n")
    mended = project.run("submit", project.root / "table.yaml", "--cluster", "debug")
    assert mended.returncode == 0 and "failed" not in mended.stdout, mended.stdout


def test_processes_that_get_to_no_task_end_the_submission(project: Project, monkeypatch):
    for name, value in project.environment().items():
        monkeypatch.setenv(name, value)
    profile, write = project.root / "profiles" / "tiny.yaml", submit._write

    def write_and_change(*arguments) -> None:
        write(*arguments)
        profile.write_text(profile.read_text().replace("max_steps: 12", "max_steps: 13"))

    monkeypatch.setattr(submit, "_write", write_and_change)
    with pytest.raises(UserError, match=r"no process got to a task; the last said: .* is no longer what was submitted"):
        submit.submit(request(project, 0), "local")
    (folder,) = (project.profile / "submissions").iterdir()
    assert len(list((folder / "jobs").glob("*_log.err"))) == 1  # the one process was not started again


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks at processes through /proc")
def test_a_local_process_that_is_killed_costs_its_task_only(project: Project):
    process = project.start("submit", project.table("full", "blind"), "--cluster", "local", "--jobs", "2", pause_s=0.1)
    until(lambda: project.has_reached("train", 2))
    working = read_json(next(project.profile.glob("trainings/*/.train.lock")))["process"]
    os.kill(working, signal.SIGKILL)
    output, _ = process.communicate(timeout=600)
    # Another process may take the task up before it is seen that its own has gone: then nothing is lost at all.
    assert process.returncode == 0 or (process.returncode == 1 and "its process was ended" in output), output
    again = project.run("submit", project.root / "table.yaml", "--cluster", "local")
    assert again.returncode == 0 and all(sorted(set(steps)) == list(range(12)) for steps in project.steps())


def test_a_job_sees_that_its_keys_have_changed(project: Project, tmp_path, capsys):
    asked = request(project, 0)
    submission = job.Submission(asked, {"row": [[]]})
    submission.write(tmp_path / "submission", pipeline.resolve(asked))
    read = job.Submission.read(tmp_path / "submission")
    assert read == submission and job.unchanged(tmp_path / "submission", read).seeds == (0,)
    assert "warning" not in capsys.readouterr().out
    code = read_json(tmp_path / "submission" / "code.json")
    code["files"]["experiments/job.py"] = "other"
    write_json(tmp_path / "submission" / "code.json", code)
    job.unchanged(tmp_path / "submission", read)
    assert "the code has changed since it was submitted: experiments/job.py" in capsys.readouterr().out
    profile = project.root / "profiles" / "tiny.yaml"
    profile.write_text(profile.read_text().replace("max_steps: 12", "max_steps: 13"))
    with pytest.raises(UserError, match=r"full-seed0 is no longer what was submitted \(now:   max_steps: 13"):
        job.unchanged(tmp_path / "submission", read)


def test_a_warned_process_asks_slurm_to_be_queued_again(monkeypatch, capsys):
    asked = []

    def scontrol(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(job.subprocess, "run", scontrol)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "8")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    job._queue_again()
    assert asked == [["scontrol", "requeue", "8_1"]]
    assert "queued again: Slurm job 8_1, 1 of at most 100" in capsys.readouterr().out
    monkeypatch.setenv("SLURM_RESTART_COUNT", "100")
    with pytest.raises(UserError, match="give it more time"):
        job._queue_again()
