"""Why a task failed: `<stage>.failed.json` beside its results, until it is started again."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.tasks import Task
from trace_lightning.artifacts import read_json, write_json

NUM_LINES = 8
TAIL_BYTES = 8192


@dataclass(frozen=True)
class Failure:
    """How a task failed.

    Attributes:
        message: what went wrong.
        log: the file that takes what the work prints.
        time: when, in local time.
        last_lines: of the log at that time.
    """

    message: str
    log: str
    time: str
    last_lines: list[str]


def write(task: Task, message: str) -> None:
    """Note that a task failed, with the last lines of its log."""
    found = Failure(message, str(task.log), time.strftime("%Y-%m-%d %H:%M:%S"), last_lines(task.log))
    write_json(_path(task), asdict(found))


def clear(task: Task) -> None:
    """Forget the failure of a task that starts again."""
    _path(task).unlink(missing_ok=True)


def read(task: Task) -> Failure | None:
    """Return how a task failed, if it did when it was last tried."""
    path = _path(task)
    return Failure(**read_json(path)) if path.is_file() else None


def last_lines(log: Path, number: int = NUM_LINES) -> list[str]:
    """Return the last lines of a text file that say something; none if it is absent."""
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return [line.rstrip() for line in text.splitlines() if line.strip()][-number:]


def _path(task: Task) -> Path:
    return task.folder / f"{task.name}.failed.json"
