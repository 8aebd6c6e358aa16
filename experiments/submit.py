"""Submits a table: what rows share once, then a job for each row and seed, and the table last.

On Slurm each stage is a job array, begun when those before it have ended, however they ended:

    prepare     the cache
    reference   real volumes, and their scores
    train       trainings, each for all rows that agree in what it depends on
    row         volumes and scores of one row and seed
    table       prints what there is
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments import failures, job, pipeline, plan, slurm, status
from experiments.job import TABLE, Submission, perform
from experiments.locks import holder
from experiments.pipeline import Request, Resolved
from experiments.progress import Display, label
from experiments.tasks import Task
from experiments.workers import THREAD_VARIABLES, variables
from trace_lightning import tracking
from trace_lightning.artifacts import write_json
from trace_lightning.errors import UserError

CLUSTERS = ("slurm", "local", "debug")
BEFORE = {  # stage -> those that must have ended
    "prepare": (),
    "reference": ("prepare",),
    "train": ("prepare",),
    "row": ("prepare", "reference", "train"),
    TABLE: ("prepare", "reference", "train", "row"),
}
ALL = "all"  # the stage of local processes: each does what it finds ready
POLL_S = 0.5
NO_LIMIT_MINUTES = 366 * 24 * 60


def submit(request: Request, cluster: str, settings: Sequence[str] = (), print_only: bool = False) -> int:
    """Submit what is left of a table; return the exit code.

    Args:
        request: the table, its profile and seeds.
        cluster: `slurm`; `local`, `run.jobs` processes without Slurm; or `debug`, in this process.
        settings: `slurm.KEY=VALUE` pairs.
        print_only: print the scripts for Slurm and submit nothing.

    Raises:
        UserError: anything wrong that can be seen before the work starts.
    """
    if cluster != "slurm" and (settings or print_only):
        raise UserError(f"{settings[0] if settings else '--print'} is for --cluster slurm; this is --cluster {cluster}")
    parameters = slurm.parse(settings, tuple(BEFORE)) if cluster == "slurm" else {}
    resolved = pipeline.resolve(request)
    tracking.check([row.experiment for row in resolved.rows])
    left, unavailable = plan.pending(resolved.tasks, None)
    folder = resolved.folders.profile / "submissions" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    stages = jobs_of(resolved, left)
    if print_only:
        for stage, made in _executors(resolved, stages, parameters, folder).items():
            print(f"# {stage}: {_count(stages[stage])}\n{slurm.script(made, len(stages[stage]))}")
        return 0
    print(plan.describe(resolved.tasks, left, resolved.rows[0].experiment.run.jobs), flush=True)
    for task in left:
        failures.clear(task)
        (task.folder / "unavailable.json").unlink(missing_ok=True)
    for task in (task for task in resolved.tasks if task.key in unavailable):
        pipeline.mark_unavailable(task, unavailable[task.key])
    pipeline.write_configs(left, resolved.rows)
    if cluster == "slurm":
        _write(request, resolved, stages, folder)
        return _to_slurm(resolved, stages, parameters, folder)
    if cluster == "local" and left:
        _in_processes(request, resolved, left, folder)
    elif left:
        job.work(left)
    return job.finish(resolved)


def jobs_of(resolved: Resolved, left: Sequence[Task]) -> dict[str, list[list[Task]]]:
    """Return stage -> for each of its jobs the tasks that are left to do, in order; without stages that are done."""
    found: dict[str, dict[Path, list[Task]]] = {stage: {} for stage in BEFORE}
    for task in left:
        stage = "row" if task.name in ("generate", "evaluate") else task.name
        stage = "reference" if task.folder == resolved.folders.ground_truth else stage
        found[stage].setdefault(task.folder, []).append(task)
    found[TABLE] = {resolved.folders.profile: []}
    return {stage: list(jobs.values()) for stage, jobs in found.items() if jobs}


def _executors(
    resolved: Resolved, stages: dict[str, list[list[Task]]], parameters: dict[str, dict[str, Any]], folder: Path
) -> dict[str, Any]:
    """Return stage -> its executor; the jobs that it waits for are named by their stage until they are known."""
    run = resolved.rows[0].experiment.run
    made = {}
    for stage in stages:
        nodes = run.num_nodes if stage == "train" else 1
        places = slurm.Places(nodes, of_slurm=nodes > 1, processes=run.devices, threads=run.threads or 1)
        name, has_use = f"{resolved.table.name}-{stage}", stage != TABLE
        of_stage = slurm.executor(folder / "jobs", name, parameters[stage], places, gpus=has_use)
        if before := [earlier for earlier in BEFORE[stage] if earlier in stages]:
            of_stage.update_parameters(dependency=f"afterany:{':'.join(before)}")
        made[stage] = of_stage
    return made


def _to_slurm(
    resolved: Resolved, stages: dict[str, list[list[Task]]], parameters: dict[str, dict[str, Any]], folder: Path
) -> int:
    numbers: dict[str, str] = {}
    submitted = {}
    for stage, made in _executors(resolved, stages, parameters, folder).items():
        if before := [numbers[earlier] for earlier in BEFORE[stage] if earlier in stages]:
            made.update_parameters(dependency=f"afterany:{':'.join(before)}")
        calls = [partial(perform, str(folder), stage, index) for index in range(len(stages[stage]))]
        submitted[stage] = slurm.submit(made, calls)
        numbers[stage] = submitted[stage][0].partition("_")[0]
        write_json(folder / "jobs.json", submitted)
        print(f"{stage}: {_count(stages[stage])}, Slurm job {numbers[stage]}", flush=True)
    output = folder / "jobs" / f"{numbers[TABLE]}_0_log.out"
    print(f"the table will be in {resolved.folders.profile / resolved.table.name}, and printed to {output}")
    return 0


def _in_processes(request: Request, resolved: Resolved, left: Sequence[Task], folder: Path) -> None:
    """Let processes do what is left, each the ready task with the longest way to go; show how far they are."""
    from submitit import LocalExecutor

    run = resolved.rows[0].experiment.run
    seconds = pipeline.estimate(left, run, resolved.folders.profile / "run.log")
    ways = plan.ways_to_go(left, seconds)
    left = sorted(left, key=lambda task: -ways[task.key])
    number = min(run.jobs, len(left))
    threads = run.threads or max(1, (os.cpu_count() or 1) // number)
    _write(request, resolved, {ALL: [left]}, folder)
    executor = LocalExecutor(folder / "jobs")
    executor.update_parameters(timeout_min=NO_LIMIT_MINUTES)
    open_tasks = list(left)
    with Display(resolved.row_names) as display, contextlib.ExitStack() as stack:
        while before := len(open_tasks):
            with variables(dict.fromkeys(THREAD_VARIABLES, str(threads))):
                jobs = [executor.submit(perform, str(folder), ALL, 0) for _ in range(number)]
            stack.callback(_end, jobs)
            while not all(one.done() for one in jobs):
                _show(resolved, open_tasks, display)
                time.sleep(POLL_S)
            _show(resolved, open_tasks, display)
            # A process that was killed could not say so; what others may still do is left to new ones.
            states = status.states_of(resolved)
            for task in open_tasks:
                if states[task.key].startswith("stopped"):
                    failures.write(task, "its process was ended (out of memory?)")
            states = status.states_of(resolved)
            open_tasks = [task for task in open_tasks if not states[task.key].startswith(status.ENDED)]
            if len(open_tasks) == before:
                raise UserError(f"no process got to a task; the last said: {_last_words(jobs)} ({folder / 'jobs'})")


def _show(resolved: Resolved, open_tasks: list[Task], display: Display) -> None:
    """Say what has ended since, taking it off the list, and show what is running."""
    for task in list(open_tasks):
        failed = failures.read(task) is not None
        if failed or ((task.folder / f"{task.name}.json").is_file() and not holder(task.claim)):
            display.say(f"{label(task)}: {task.name} {'failed' if failed else 'done'}")
            open_tasks.remove(task)
    running = [task for task in open_tasks if holder(task.lock)]
    rows = resolved.row_names
    display.update(running, sum(not any(row in task.rows for task in open_tasks) for row in rows))


def _last_words(jobs: Sequence[Any]) -> str:
    said = [line for one in jobs for line in (one.stderr() or "").splitlines() if line.strip()]
    return said[-1].removeprefix("error: ") if said else "nothing"


def _end(jobs: Sequence[Any]) -> None:
    """Let processes that still work stop and leave their files in order."""
    for one in jobs:
        if not one.done():
            os.kill(int(one.job_id), signal.SIGTERM)  # handed on by submitit's controller
    while not all(one.done() for one in jobs):
        time.sleep(POLL_S)


def _write(request: Request, resolved: Resolved, stages: dict[str, list[list[Task]]], folder: Path) -> None:
    names = {
        stage: [[[task.name, str(task.folder)] for task in tasks] for tasks in jobs] for stage, jobs in stages.items()
    }
    Submission(request, names, os.environ.get("CUDA_VISIBLE_DEVICES")).write(folder, resolved)


def _count(jobs: Sequence[Any]) -> str:
    return f"{len(jobs)} job{'' if len(jobs) == 1 else 's'}"
