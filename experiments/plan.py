"""Before a run: what is done, what is left, and about how long, how large and how hungry it will be."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments import stamps
from experiments.methods import method_of, resolve
from experiments.progress import duration
from experiments.tasks import Task, depends, is_intact, stages_from
from trace_lightning.artifacts import read_json
from trace_lightning.config import Experiment
from trace_lightning.errors import NotEnoughPatients

CHEST_MM = 300.0  # where nothing is known of the patients yet
SCORING_SECONDS_PER_MEGAVOXEL = 4.0  # measured on one core
PREPARING_SECONDS_PER_MEGAVOXEL = 3.0
VOLUME_BYTES_PER_VOXEL = 1.3  # int16 with CT noise, gzipped
PROCESS_BYTES = 0.6e9  # Python with its libraries
TRAINING_BYTES_PER_PARAMETER = 20  # weights, average and the optimiser's two moments


@dataclass(frozen=True)
class Cases:
    """The volumes of a row: how many of each part, and the typical number of slices."""

    train: int
    val: int
    test: int
    slices: int
    excluded: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, experiment: Experiment) -> Cases:
        """Count them in the tree, or as asked for while the phantom is not written.

        Raises:
            NotEnoughPatients: more are asked for than there are.
            UserError: the tree is not usable.
        """
        from trace_lightning.data import cache, ct_rate

        data = experiment.data
        root = cache.data_root(experiment)
        if data.root is None and not root.is_dir():
            spacing_mm = data.spacing_z_mm or statistics.mean(data.phantom.spacing_z_mm)
            num_train = round(data.num_train_patients * data.train_fraction)
            return cls(num_train, data.num_val_patients, data.num_test_patients, round(CHEST_MM / spacing_mm))
        split = ct_rate.split(ct_rate.read_index(root, data.version), data)
        listed = [scan.num_slices for scan in split.scans if scan.num_slices]
        slices = round(CHEST_MM / data.spacing_z_mm) if data.spacing_z_mm else round(statistics.mean(listed or [1]))
        excluded = {exclusion.case_id: exclusion.reason for exclusion in split.excluded}
        return cls(len(split.train), len(split.val), len(split.test), slices, excluded)

    def megavoxels(self, volumes: int, size: int) -> float:
        """Return the size of some of the volumes."""
        return volumes * self.slices * size * size / 1e6


def survey(experiments: Sequence[Experiment]) -> dict[str, dict[str, float]]:
    """Return the cost of each experiment, by name (called in a worker: it imports and runs the network)."""
    costs = {}
    for experiment in experiments:
        cases = Cases.of(experiment)
        cost = resolve(method_of(experiment).cost)(experiment, cases.train, cases.slices)
        costs[experiment.name] = cost | seconds_of(experiment, cases, cost)
    return costs


def seconds_of(experiment: Experiment, cases: Cases, cost: dict[str, float]) -> dict[str, float]:
    """Return stage -> estimated seconds."""
    size = experiment.data.size
    everything = cases.train + cases.val + cases.test
    return {
        "prepare": cases.megavoxels(everything, size) * PREPARING_SECONDS_PER_MEGAVOXEL,
        "reference": cases.megavoxels(cases.test, size) * PREPARING_SECONDS_PER_MEGAVOXEL,
        "train": cost["train_seconds"],
        "generate": cost["generate_seconds_per_slice"] * cases.slices * cases.test,
        "evaluate": cases.megavoxels(cases.test, size) * SCORING_SECONDS_PER_MEGAVOXEL,
    }


def pending(tasks: Sequence[Task], redo: str | None) -> tuple[list[Task], dict[tuple[str, Path], str]]:
    """Return the tasks that are left, and reason by task of those that ask for more patients than there are.

    Args:
        tasks: each after those it needs.
        redo: the stage from which on everything counts as not done.

    Raises:
        UserError: something was done or begun with other keys or other code.
    """
    redone = stages_from(redo)
    left: dict[tuple[str, Path], Task] = {}
    unavailable: dict[tuple[str, Path], str] = {}
    for task in tasks:
        lacking = next((unavailable[need.key] for need in task.needs if need.key in unavailable), None)
        reason = lacking or (None if task.stage in redone else unavailable_reason(task))
        if reason:
            unavailable[task.key] = reason
        elif task.stage in redone:
            left[task.key] = task
        else:
            needed = depends(task)
            for need in task.needs:
                if need.key in left and need.name in needed["upstream"]:
                    needed["upstream"][need.name] = None  # will be known when it is done
            state = stamps.check(task.folder, task.name, needed, task.stage)
            if state != "done" or any(need.key in left for need in task.needs) or not is_intact(task):
                left[task.key] = task
    return list(left.values()), unavailable


def unavailable_reason(task: Task) -> str | None:
    """Return why a task was found to ask for too many patients, if it was and nothing has changed."""
    path = task.folder / "unavailable.json"
    if task.name != "prepare" or not path.is_file():
        return None
    record = read_json(path)
    return None if stamps.differences(record["depends"], depends(task)) else record["reason"]


def describe(tasks: Sequence[Task], left: Sequence[Task], jobs: int) -> str:
    """Return what is done, what will be trained and generated, and which volumes are left out."""
    trainings = [task for task in tasks if task.name == "train"]
    lines = []
    for task in trainings:
        state = "to do" if task in left else "done"
        if task in left and (task.folder / "train.begun.json").is_file():
            state = "to be continued"
        cases = cases_or_reason(task.experiment)
        of = f"{cases.train} + {cases.val} volumes" if isinstance(cases, Cases) else cases
        lines.append(f"  train {', '.join(task.rows)} ({of}): {state}")
    for name in ("generate", "evaluate"):
        group = [task for task in tasks if task.name == name]
        todo = [task.rows[0] for task in group if task in left]
        lines.append(f"  {name} {_count(len(group), 'row')}: " + (f"to do {', '.join(todo)}" if todo else "done"))
    cases = next((c for c in (cases_or_reason(task.experiment) for task in trainings) if isinstance(c, Cases)), None)
    if cases:
        lines.append(f"  test: {cases.test} volumes of about {cases.slices} slices")
        lines += [f"  excluded: {case_id}: {reason}" for case_id, reason in cases.excluded.items()]
    rows = {row for task in tasks for row in task.rows}
    head = f"{_count(len(trainings), 'training')} for {_count(len(rows), 'row')}, {jobs} at a time:"
    return "\n".join([head, *lines])


def estimate(left: Sequence[Task], costs: dict[str, dict[str, float]], jobs: int) -> str:
    """Return time, disk and memory of what is left, in words."""
    seconds = seconds_by_task(left, costs)
    disk = sum(bytes_by_folder(left, costs).values())
    memory = sorted((cost["memory_bytes"] for cost in costs.values()), reverse=True)[:jobs]
    return (
        f"about {duration(makespan(left, seconds, jobs))} in all, {disk / 1e9:.1f} GB of disk, "
        f"{(sum(memory) + jobs * PROCESS_BYTES) / 1e9:.1f} GB of memory in {jobs} processes"
    )


def need_space(left: Sequence[Task], costs: dict[str, dict[str, float]]) -> list[str]:
    """Return for each folder in words how much will be written there and how much is free.

    Raises:
        UserError: a disk is too small.
    """
    from trace_lightning.data.footprint import need_space

    return [need_space(folder, size, what) for (what, folder), size in bytes_by_folder(left, costs).items()]


def bytes_by_folder(left: Sequence[Task], costs: dict[str, dict[str, float]]) -> dict[tuple[str, Path], float]:
    """Return (what, where) -> the bytes that will be written; the cache counts once what rows share."""
    from trace_lightning.data import cache

    known = [task for task in left if task.experiment.name in costs]
    cached: dict[Path, int] = {}
    for task in known:
        if task.name == "prepare":
            cached |= cache.files_to_write(task.experiment)
    sizes: dict[tuple[str, Path], float] = {}
    for task in known:
        run = task.experiment.run
        sizes.setdefault(("the cache", Path(run.cache_dir)), sum(cached.values()))
        results = "the output", Path(run.runs_dir)
        sizes[results] = sizes.get(results, 0.0) + _bytes(task, costs[task.experiment.name])
    return sizes


def seconds_by_task(left: Sequence[Task], costs: dict[str, dict[str, float]]) -> dict[Any, float]:
    """Return the estimated seconds of each task; the cache that prepare tasks share is filled by the first."""
    first = next((task for task in left if task.name == "prepare"), None)
    return {
        task.key: costs[task.experiment.name][task.name] if task.name != "prepare" or task is first else 0.0
        for task in left
        if task.experiment.name in costs
    }


def makespan(left: Sequence[Task], seconds: dict[Any, float], jobs: int) -> float:
    """Return how long the tasks take on `jobs` workers, those with the longest way to go first."""
    ways = ways_to_go(left, seconds)
    ends: dict[Any, float] = {}
    workers = [0.0] * jobs
    waiting = sorted(left, key=lambda task: -ways[task.key])
    pending_keys = {task.key for task in left}
    while waiting:
        ready = [task for task in waiting if all(n.key in ends or n.key not in pending_keys for n in task.needs)]
        task = min(ready, key=lambda task: (max([0.0, *(ends.get(n.key, 0.0) for n in task.needs)]), -ways[task.key]))
        start = max(heapq.heappop(workers), *(ends.get(need.key, 0.0) for need in task.needs), 0.0)
        ends[task.key] = start + seconds.get(task.key, 0.0)
        heapq.heappush(workers, ends[task.key])
        waiting.remove(task)
    return max(ends.values(), default=0.0)


def ways_to_go(tasks: Sequence[Task], seconds: dict[Any, float]) -> dict[Any, float]:
    """Return for each task its own time and that of the longest chain that waits for it."""
    ways = {task.key: seconds.get(task.key, 0.0) for task in tasks}
    for task in reversed(tasks):
        for need in task.needs:
            if need.key in ways:
                ways[need.key] = max(ways[need.key], seconds.get(need.key, 0.0) + ways[task.key])
    return ways


def cases_or_reason(experiment: Experiment) -> Cases | str:
    """Return the volumes of a row, or why it cannot have them."""
    try:
        return Cases.of(experiment)
    except NotEnoughPatients as error:
        return f"not available: {error}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _bytes(task: Task, cost: dict[str, float]) -> float:
    cases = cases_or_reason(task.experiment)
    if isinstance(cases, str):
        return 0.0
    size = task.experiment.data.size
    match task.name:
        case "train":
            return cost.get("parameters", 0) * TRAINING_BYTES_PER_PARAMETER
        case "generate" | "reference":
            return cases.megavoxels(cases.test, size) * 1e6 * VOLUME_BYTES_PER_VOXEL
    return 0.0
