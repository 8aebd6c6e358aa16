"""How far each stage of each row is, and why one failed; the processes that work say so in files."""

from __future__ import annotations

import math
import time
from collections.abc import Collection

from experiments import failures, slurm
from experiments.locks import holder
from experiments.pipeline import Request, Resolved, resolve
from experiments.progress import report_of
from experiments.stamps import check
from experiments.tasks import STAGES, Task, depends
from trace_lightning.artifacts import read_json
from trace_lightning.errors import UserError

WATCH_EVERY_S = 2.0
ASK_EVERY_S = 30.0  # Slurm answers all users of a cluster
ENDED = ("done", "failed", "blocked", "unavailable")


def status(request: Request) -> str:
    """Return the state of each stage of each row, and what failed with the last lines of its log."""
    resolved = resolve(request)
    return shown(resolved, states_of(resolved, in_queue(resolved)))


def watch(request: Request) -> None:
    """Show the status until every row is done or has failed, or until Ctrl-C."""
    from rich.live import Live
    from rich.text import Text

    resolved, asked = resolve(request), -math.inf
    with Live(refresh_per_second=4) as live:
        while True:
            if time.monotonic() >= asked + ASK_EVERY_S:
                queued, asked = in_queue(resolved), time.monotonic()
            states = states_of(resolved, queued)
            live.update(Text(shown(resolved, states)))
            if all(state.startswith(ENDED) for state in states.values()):
                return
            time.sleep(WATCH_EVERY_S)


def in_queue(resolved: Resolved) -> set[tuple[str, str]]:
    """Return name and folder of the tasks whose jobs wait in Slurm's queue."""
    of_jobs: dict[str, list[list[str]]] = {}
    for path in (resolved.folders.profile / "submissions").glob("*/jobs.json"):
        tasks = read_json(path.with_name("submission.json"))["stages"]
        for stage, jobs in read_json(path).items():
            of_jobs |= zip(jobs, tasks[stage], strict=True)
    return {(name, folder) for job in slurm.pending(list(of_jobs)) for name, folder in of_jobs[job]}


def states_of(resolved: Resolved, queued: Collection[tuple[str, str]] = ()) -> dict:
    """Return the state of each task by its key; `queued` names those that `in_queue` found."""
    states: dict = {}
    for task in resolved.tasks:
        needs = [states[need.key] for need in task.needs]
        failed = any(state.startswith(("failed", "blocked")) for state in needs)
        states[task.key] = _state(task, failed, (task.name, str(task.folder)) in queued)
    return states


def shown(resolved: Resolved, states: dict | None = None) -> str:
    """Return rows x stages, and what failed."""
    states = states or states_of(resolved)
    lines = [["row", *STAGES]]
    for name in resolved.row_names:
        of_row = {task.stage: task for task in resolved.tasks if name in task.rows and task.name != "reference"}
        lines.append([name, *(states[of_row[stage].key] if stage in of_row else "" for stage in STAGES)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(STAGES) + 1)]
    table = ["  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*table, *_failures(resolved)])


def _failures(resolved: Resolved) -> list[str]:
    lines = []
    for task in resolved.tasks:
        if found := failures.read(task):
            lines += ["", f"{', '.join(task.rows)}: {task.name} failed at {found.time}: {found.message} ({found.log})"]
            lines += [f"    {line}" for line in found.last_lines]
    return lines


def _state(task: Task, need_failed: bool, queued: bool) -> str:
    if (task.folder / "unavailable.json").is_file():
        return "unavailable"
    try:
        state = check(task.folder, task.name, depends(task), task.stage)
    except UserError:
        return "changed"
    if state == "done":
        return state
    progress = report_of(task)
    how_far = f" {progress.done}/{progress.total}" if progress and state == "begun" else ""
    if holder(task.lock):
        return f"running{how_far}"
    if failures.read(task):
        return f"failed{how_far}"
    if need_failed:
        return "blocked"
    if queued:
        return f"queued{how_far}"
    if state == "begun":
        return f"stopped{how_far}"
    return "waiting" if holder(task.claim) else "-"
