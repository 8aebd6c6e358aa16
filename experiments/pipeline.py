"""Runs the rows of a table: what is done is kept, what is left is spread over worker processes, the table is printed.

Killed at any moment, the same command goes on. What a stage printed is in `run.log` beside its results.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from experiments import failures, load, panels, plan
from experiments.load import Loaded, Row, Table
from experiments.locks import Held, hold
from experiments.progress import FILE, Display, duration, label
from experiments.tasks import GROUND_TRUTH, Folders, Task, depends, discard, row_name, stages_from, tasks_of
from experiments.workers import Outcome, Workers
from trace_lightning import tracking
from trace_lightning.artifacts import sweep_temporary, write_json, write_text
from trace_lightning.config import RunConfig
from trace_lightning.errors import UserError

POLL_S = 0.5
PATIENCE_S = 30.0  # with workers of a killed run, which end by themselves


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        target: a table or an experiment, by name or path.
        profile: name of the profile.
        seeds: of training and sampling; the table is over all of them.
        overrides: key=value pairs.
        redo: the stage from which on everything is done again.
        dry_run: only say what would be done.
    """

    target: str
    profile: str = "phantom"
    seeds: tuple[int, ...] = (0,)
    overrides: tuple[str, ...] = ()
    redo: str | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds {', '.join(map(str, self.seeds))}: one is named twice")


@dataclass(frozen=True)
class Resolved:
    """A request after loading: the table, its rows and their tasks."""

    table: Table
    rows: list[Loaded]
    tasks: list[Task]
    folders: Folders

    @property
    def row_names(self) -> list[str]:
        """The names of the rows that there is something to do for, in the table's order, seed by seed."""
        several = len(self.seeds) > 1
        names = []
        for row in self.table.rows:
            of_row = [one.experiment for one in self.rows if one.experiment.name == row.experiment]
            names += [row_name(experiment, several) for experiment in of_row]
            names += [GROUND_TRUTH] if row.source == GROUND_TRUTH else []
        return list(dict.fromkeys(names))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in the order in which they were asked for."""
        return tuple(dict.fromkeys(row.experiment.seed for row in self.rows))


def run(request: Request) -> int:
    """Do what is left of a table or an experiment and print the table; return the exit code.

    Raises:
        UserError: anything wrong that can be seen before the work starts.
    """
    resolved = resolve(request)
    first, folders = resolved.rows[0], resolved.folders
    if first.scratch:
        print(f"with {', '.join(first.overrides)}: results go to {folders.profile}, no table reads them")
    outcomes = _complete(resolved, request)
    if request.dry_run:
        return 0
    if any(task.name == "evaluate" and _is_done(task, outcomes) for task in resolved.tasks):
        print_table(resolved)
    return report(resolved.tasks, outcomes)


def complete(resolved: Resolved, request: Request) -> int:
    """Do what is left of some rows, without their table; return the exit code.

    Raises:
        UserError: anything wrong that can be seen before the work starts.
    """
    return report(resolved.tasks, _complete(resolved, request))


def resolve(request: Request) -> Resolved:
    """Load and check everything that a request names; a single experiment is a table of the real volumes and itself."""
    path = load.find(request.target)
    if load.is_table(path):
        table = load.load_table(path)
    else:
        rows = (Row("GT", source=GROUND_TRUTH), Row(path.stem, path.stem))
        table = replace(load.load_table("table1"), name=path.stem, title="", published=None, rows=rows, path=path)
    rows = [
        load.load(path.with_name(f"{name}.yaml"), request.profile, request.overrides, seed)
        for seed in request.seeds
        for name in table.experiments
    ]
    for row in rows:
        row.experiment.run.wandb_group = row.experiment.run.wandb_group or table.name
    if not rows:
        raise UserError(f"{load.shown(path)}: no row names an experiment, so there is nothing to run")
    ground_truth = any(row.source == GROUND_TRUTH for row in table.rows)
    return Resolved(table, rows, tasks_of(rows, ground_truth), Folders.of(rows[0]))


def work(left: Sequence[Task], workers: Workers, seconds: dict[Any, float], rows: Sequence[str]) -> dict[Any, Outcome]:
    """Do tasks as their needs are met, those with the longest way to go first; a failing row stops no other."""
    ways = plan.ways_to_go(left, seconds)
    waiting = sorted(left, key=lambda task: -ways[task.key])
    pending = {task.key for task in left}
    running: dict[Any, tuple[Task, float]] = {}
    outcomes: dict[Any, Outcome] = {}
    with Display(rows) as display:
        while waiting or running:
            for task in list(waiting):
                needs = [outcomes.get(need.key) for need in task.needs if need.key in pending]
                failed = next((need for need in needs if need and need.state != "done"), None)
                if failed:
                    outcomes[task.key] = failed
                    waiting.remove(task)
                elif None not in needs and workers.free:
                    workers.call(task.key, "experiments.pipeline:execute", task, task.log)
                    running[task.key] = task, time.monotonic()
                    waiting.remove(task)
            for key, outcome in workers.finished(POLL_S):
                task, started = running.pop(key)
                outcomes[key] = outcome
                if outcome.state in ("refused", "broken"):
                    failures.write(task, outcome.message)
                display.say(f"{label(task)}: {task.name} {outcome.state} ({duration(time.monotonic() - started)})")
            rows_done = sum(not any(row in task.rows for task in [*waiting, *_tasks(running)]) for row in rows)
            display.update(_tasks(running), rows_done)
    return outcomes


def report(tasks: Sequence[Task], outcomes: dict[Any, Outcome]) -> int:
    """Say which rows are missing and why; return 0, 2 if the user can mend it, 1 if something broke."""
    rows: dict[tuple[str, str], list[str]] = {}
    for task in tasks:
        outcome = outcomes.get(task.key)
        inherited = any(outcomes.get(need.key) is outcome for need in task.needs)
        if not _is_done(task, outcomes) and not inherited:
            where = f" (see {task.log})" if outcome.state == "broken" else ""
            rows.setdefault((outcome.state, f"{outcome.message}{where}"), []).extend(task.rows)
    for (state, message), names in rows.items():
        line = f"{', '.join(dict.fromkeys(names))}: {message}"
        print(line if state == "unavailable" else f"error: {line}", file=None if state == "unavailable" else sys.stderr)
    states = {state for state, _ in rows}
    return 1 if "broken" in states else 2 if states & {"refused", "stopped"} else 0


@contextlib.contextmanager
def claimed(left: Sequence[Task], folders: Folders) -> Iterator[None]:
    """Keep other runs from the same tasks, and sweep what killed ones left half-written.

    Raises:
        UserError: another run works on one of them; says which, and since when.
    """
    claims = {task.claim: task for task in left}
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold(list(claims)))
        except Held as error:
            task = claims[error.lock]
            raise UserError(
                f"{folders.profile}: another run works here ({error.who}; it has {task.name} for {label(task)}); wait "
                "for it or end it"
            ) from None
        sweep_temporary(folders.profile)
        yield


def estimate(left: Sequence[Task], run: RunConfig, log: Path) -> dict[Any, float]:
    """Print what tasks will cost, and return their seconds; see `run`."""
    with Workers(min(run.jobs, len(left)), run.threads) as workers:
        return _estimate(workers, left, run.jobs, log)


def execute(task: Task) -> bool:
    """Do a task in this process, as soon as no worker of a killed run is at it any more; see `stages.execute`."""
    from experiments import stages

    with hold([task.lock], PATIENCE_S):
        failures.clear(task)
        (task.folder / FILE).unlink(missing_ok=True)
        return stages.execute(task)


def write_configs(left: Sequence[Task], rows: Sequence[Loaded]) -> None:
    """Keep the resolved config beside weights and volumes, each value with the file that set it."""
    loaded = {(row.experiment.name, row.experiment.seed): row for row in rows}
    for task in left:
        if task.name in ("train", "generate"):
            of_task = loaded[task.experiment.name, task.experiment.seed]
            write_text(task.folder / "config.yaml", load.describe(of_task))


def mark_unavailable(task: Task, reason: str) -> None:
    """Leave the reason where the table looks for scores, and where the next run looks before it tries again."""
    write_json(task.folder / "unavailable.json", {"reason": reason, "depends": depends(task)})


def print_table(resolved: Resolved) -> None:
    """Print the table from the scores on disk, and write it below the profile's runs."""
    from evaluation.table import make_table

    table, folders = resolved.table, resolved.folders
    path = table.path
    if not load.is_table(path):
        path = folders.profile / table.name / "table.yaml"
        rows = [{key: value for key, value in asdict(row).items() if value} for row in table.rows]
        for row in rows:
            row.pop("source" if "experiment" in row else "experiment", None)
        keys = {"name": table.name, "columns": table.columns, "companions": table.companions, "rows": rows}
        write_json(path, keys)  # JSON is YAML
    written = make_table(path, folders.profile.name, resolved.seeds, folders.profile.parent)
    panels.publish_table(resolved.rows[0].experiment, table.name, written)


def _complete(resolved: Resolved, request: Request) -> dict[Any, Outcome]:
    """Say what is left, do it unless this is a dry run, and return how the tasks ended."""
    tracking.check([row.experiment for row in resolved.rows])
    left, unavailable = plan.pending(resolved.tasks, request.redo)
    outcomes = {key: Outcome("unavailable", message=reason) for key, reason in unavailable.items()}
    if left or request.dry_run:
        print(plan.describe(resolved.tasks, left, resolved.rows[0].experiment.run.jobs), flush=True)
    if left and request.dry_run:
        _do(resolved, left, request)
    elif left:
        with claimed(left, resolved.folders):
            outcomes |= _do(resolved, left, request)
    if not request.dry_run:
        _mark_unavailable(resolved, outcomes)
    return outcomes


def _do(resolved: Resolved, left: Sequence[Task], request: Request) -> dict[Any, Outcome]:
    """Start the workers, print the estimate, and unless this is a dry run do what is left."""
    keys, folder = resolved.rows[0].experiment.run, resolved.folders.profile
    with Workers(min(keys.jobs, len(left)), keys.threads) as workers:
        seconds = _estimate(workers, left, keys.jobs, folder / "run.log")
        if request.dry_run:
            return {}
        for task in reversed(left):
            (task.folder / "unavailable.json").unlink(missing_ok=True)
            if task.stage in stages_from(request.redo):
                discard(task)
        write_configs(left, resolved.rows)
        return work(left, workers, seconds, resolved.row_names)


def _estimate(workers: Workers, left: Sequence[Task], jobs: int, log: Path) -> dict[Any, float]:
    """Measure what the rows cost, each worker a share, print the estimate, and return seconds by task."""
    experiments = {task.experiment.name: task.experiment for task in left}
    available = [e for e in experiments.values() if isinstance(plan.cases_or_reason(e), plan.Cases)]
    for share in range(len(workers.free)):
        workers.call(share, "experiments.plan:survey", available[share :: workers.number], log)
    costs: dict[str, dict[str, float]] = {}
    while workers.busy:
        for _, outcome in workers.finished(None):
            if outcome.state != "done":
                raise UserError(f"the cost of the rows cannot be estimated: {outcome.message} (see {log})")
            costs |= outcome.value
    print(f"  estimate: {plan.estimate(left, costs, jobs)}")
    print("".join(f"  {line}\n" for line in plan.need_space(left, costs)), end="", flush=True)
    return plan.seconds_by_task(left, costs)


def _mark_unavailable(resolved: Resolved, outcomes: dict[Any, Outcome]) -> None:
    for task in resolved.tasks:
        outcome = outcomes.get(task.key)
        if outcome and outcome.state == "unavailable":
            mark_unavailable(task, outcome.message)
        else:
            (task.folder / "unavailable.json").unlink(missing_ok=True)


def _is_done(task: Task, outcomes: dict[Any, Outcome]) -> bool:
    return task.key not in outcomes or outcomes[task.key].state == "done"


def _tasks(running: dict[Any, tuple[Task, float]]) -> list[Task]:
    return [task for task, _ in running.values()]
