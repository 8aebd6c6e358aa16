"""How far each stage of each row is, and why one failed; the processes that work say so in files."""

from __future__ import annotations

import time

from experiments import failures
from experiments.locks import holder
from experiments.pipeline import Request, Resolved, resolve
from experiments.progress import report_of
from experiments.stamps import check
from experiments.tasks import STAGES, Task, depends
from trace_lightning.errors import UserError

WATCH_EVERY_S = 2.0
ENDED = ("done", "failed", "blocked", "unavailable")


def status(request: Request) -> str:
    """Return the state of each stage of each row, and what failed with the last lines of its log."""
    return shown(resolve(request))


def watch(request: Request) -> None:
    """Show the status until every row is done or has failed, or until Ctrl-C."""
    from rich.live import Live
    from rich.text import Text

    resolved = resolve(request)
    text = shown(resolved)
    with Live(Text(text), refresh_per_second=4) as live:
        while True:
            states = states_of(resolved)
            live.update(Text(shown(resolved, states)))
            if all(state.startswith(ENDED) for state in states.values()):
                return
            time.sleep(WATCH_EVERY_S)


def states_of(resolved: Resolved) -> dict:
    """Return the state of each task by its key."""
    states: dict = {}
    for task in resolved.tasks:
        needs = [states[need.key] for need in task.needs]
        states[task.key] = _state(task, any(state.startswith(("failed", "blocked")) for state in needs))
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


def _state(task: Task, need_failed: bool) -> str:
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
    if state == "begun":
        return f"stopped{how_far}"
    return "waiting" if holder(task.claim) else "-"
