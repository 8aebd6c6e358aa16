"""How far the work is: workers write it to `progress.json` beside their results, the display reads it there.

A second terminal (`python -m experiments status`) therefore sees what the first one sees.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from experiments.tasks import Task
from trace_lightning.artifacts import read_json, write_json

FILE = "progress.json"
WRITE_EVERY_S = 0.5
PRINT_EVERY_S = 15.0
UNITS = {"prepare": "volumes", "reference": "volumes", "train": "steps", "generate": "slices", "evaluate": "volumes"}


@dataclass(frozen=True)
class Report:
    """How far a task is: `done` of `total` units, of which `first` were there when it started `seconds` ago."""

    task: str
    done: int
    total: int
    first: int
    seconds: float
    note: str = ""

    @property
    def pace(self) -> str:
        """What was done a second, in words."""
        return f"{(self.done - self.first) / self.seconds:.3g} {UNITS[self.task]}/s"

    @property
    def seconds_left(self) -> float | None:
        """How long it will take at the pace so far; None at the start."""
        made = self.done - self.first
        return (self.total - self.done) * self.seconds / made if made > 0 else None


class ProgressFile:
    """The `Progress` that a stage is given; writes at most twice a second, and at the end."""

    def __init__(self, task: Task):
        self.task, self.started, self.written = task, time.monotonic(), 0.0
        self.first: int | None = None

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Report `done` of `total` units."""
        now = time.monotonic()
        if self.first is None:
            self.first = done
        if now - self.written >= WRITE_EVERY_S or done == total:
            self.written = now
            report = Report(self.task.name, done, total, self.first, round(now - self.started, 1), note)
            write_json(self.task.folder / FILE, asdict(report))


@dataclass(frozen=True)
class Further:
    """The progress of a part of the work: `kept` of `total` units were there before."""

    progress: ProgressFile
    kept: int
    total: int

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Report `done` units of the part."""
        self.progress(self.kept + done, self.total, note)


def report_of(task: Task) -> Report | None:
    """Return how far a task is, if it has said so."""
    path = task.folder / FILE
    if not path.is_file():
        return None
    report = Report(**read_json(path))
    return report if report.task == task.name else None


class Display:
    """Shows running tasks and finished rows: live bars on a terminal, a line now and then elsewhere."""

    def __init__(self, rows: Iterable[str]):
        self.rows = tuple(rows)
        self.started = time.monotonic()
        self.printed = self.started
        self.live: Any = None

    def __enter__(self) -> Display:
        from rich.console import Console

        self.console = Console()
        if self.console.is_terminal:
            from rich.live import Live

            self.live = Live(console=self.console, refresh_per_second=4, transient=True)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(f"[{self._elapsed():>7}]  {text}", markup=False, highlight=False, soft_wrap=True)

    def update(self, running: list[Task], rows_done: int) -> None:
        """Show how far the running tasks are."""
        if self.live is not None:
            self.live.update(self._bars(running, rows_done))
        elif time.monotonic() - self.printed >= PRINT_EVERY_S:
            self.printed = time.monotonic()
            for task in running:
                self.say(f"{label(task)}: {describe(report_of(task), task)}")

    def _bars(self, running: list[Task], rows_done: int) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        for task in running:
            report = report_of(task)
            bar = ProgressBar(report.total, report.done, width=30) if report else ProgressBar(None, width=30)
            grid.add_row(label(task), bar, describe(report, task))
        grid.add_row(f"{rows_done} of {len(self.rows)} rows done", "", self._elapsed())
        return grid

    def _elapsed(self) -> str:
        return duration(time.monotonic() - self.started)


def label(task: Task) -> str:
    """Return the rows that wait for a task, shortened where all do."""
    return ", ".join(task.rows) if len(task.rows) <= 3 else f"{task.rows[0]} and {len(task.rows) - 1} more"


def describe(report: Report | None, task: Task) -> str:
    """Return a task's progress in words."""
    if report is None:
        return f"{task.name} starting"
    parts = [f"{task.name} {report.done}/{report.total}"]
    if report.seconds_left is not None and report.seconds > 0 and report.done < report.total:
        parts += [report.pace, f"{duration(report.seconds_left)} left"]
    return ", ".join(parts) + (f" ({report.note})" if report.note else "")


def duration(seconds: float) -> str:
    """Return a duration for people: 45 s, 12 min 5 s, 3.2 h, 14 days."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.0f} days"
