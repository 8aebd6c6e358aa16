"""The matrix of faults and stages, for the terminal and for docs/reliability.md."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from experiments.stages import git_state
from trace_lightning.artifacts import write_text

HEAD = """# What a run survives

Written by `make test-faults`. Each cell is a run of the real command line on a tiny project (5 patients of 10 slices,
12 training steps) that meets a fault in the middle of a stage. Then nothing partial lies under a final name, and the
same command, repeated once the cause is gone (the disk has room, the code and the input are as they were), ends with
the table, volumes, masks and weights of a run that nothing interrupted, byte for byte. Corrupted is, in this order, a
volume of the cache, a checkpoint, a generated volume, a case's scores.
"""


@dataclass(frozen=True)
class Cell:
    """What was seen: how the fault showed, and the seconds of the command that was repeated."""

    outcome: str
    seconds: float


@dataclass
class Matrix:
    """All cells that were tried."""

    faults: tuple[str, ...]
    stages: tuple[str, ...]
    uninterrupted_s: float
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)

    def show(self) -> None:
        """Print it."""
        from rich.console import Console
        from rich.table import Table

        table = Table("fault", *self.stages, title=f"seconds to recover; a whole run takes {self.uninterrupted_s:.1f}")
        for row in self._rows():
            table.add_row(*row)
        Console(width=170).print(table)

    def write(self, path: Path) -> None:
        """Write it as Markdown, if every cell was tried.

        Raises:
            ValueError: some were not.
        """
        cells = [(fault, stage) for fault in self.faults for stage in self.stages]
        missing = [" x ".join(cell) for cell in cells if cell not in self.cells]
        if missing:
            raise ValueError(f"{path} is not written: no result for {', '.join(missing)}")
        state = git_state() or {"commit": "no git", "dirty": False}
        where = f"{os.cpu_count()} cores, Python {platform.python_version()}, {date.today()}"
        commit = f"{state['commit'][:12]}{' with changes' if state['dirty'] else ''}"
        lines = [HEAD, f"Commit {commit}; {where}. A whole run takes {self.uninterrupted_s:.1f} s once libraries are"]
        lines += ["loaded; in brackets are the seconds of the repeated command.\n"]
        lines += ["| fault | " + " | ".join(self.stages) + " |", "| --- " * (len(self.stages) + 1) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in self._rows()]
        write_text(path, "\n".join(lines) + "\n")

    def _rows(self) -> list[list[str]]:
        rows = []
        for fault in self.faults:
            found = [self.cells.get((fault, stage)) for stage in self.stages]
            rows.append([fault, *(f"{cell.outcome} ({cell.seconds:.1f} s)" if cell else "-" for cell in found)])
        return rows
