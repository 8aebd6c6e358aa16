"""A table as it is gathered: blocks of rows, their cells, and why a cell is empty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.metrics import Metric, metric

COSTS = ("slices_per_second", "evaluations_per_slice", "parameters_m", "peak_memory_gb", "train_memory_gb")


@dataclass(frozen=True)
class Cell:
    """One number on the printed scale, or the reason why there is none.

    Attributes:
        value: mean over volumes (and over seeds), or None.
        low: lower end of the 95 % interval, where there is one.
        high: its upper end.
        spread: standard deviation over seeds, where there are several.
        n: volumes (of one seed).
        reason: why `value` is None.
        best: best of its column among rows with the same inputs.
        differs: the 95 % interval of the paired difference to the row that the table names excludes 0.
        text: a published number, as it was printed.
        d: features, of a distance between sets.
        floor: real volumes against real ones, of a distance between sets.
        few: there are fewer than two samples a feature.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    n: int = 0
    reason: str = ""
    best: bool = False
    differs: bool = False
    text: str | None = None
    d: int | None = None
    floor: float | None = None
    few: bool = False


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        label: as in the table's YAML.
        cells: column -> cell.
        inputs: what it is given at test time; None where that is not known, or nothing is generated.
        n: volumes scored (of one seed).
        notes: what must be said beside it.
        reason: why the whole row is empty.
        is_real: the real volumes themselves.
        volumes: folder of its volumes (of the first seed).
        reference: folder of the real volumes (of the first seed).
        cases: the volumes scored (of the first seed).
        scores: the folders of its score files, by seed.
    """

    label: str
    cells: Mapping[str, Cell]
    inputs: tuple[str, ...] | None = None
    n: int = 0
    notes: tuple[str, ...] = ()
    reason: str | None = None
    is_real: bool = False
    volumes: Path | None = None
    reference: Path | None = None
    cases: tuple[str, ...] = ()
    scores: Mapping[int, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Block:
    """Rows under one set of columns.

    Attributes:
        title: above it.
        columns: names of metrics.
        rows: from top to bottom.
        source: of published numbers; None for ours.
        beside: whether its columns stand beside those of the table, and may be left out where they are empty.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    source: str | None = None
    beside: bool = False

    def empty(self) -> dict[str, str]:
        """Return the columns without a number in any row that was scored, each with the reason."""
        scored = [row for row in self.rows if row.reason is None]
        if not (self.beside and scored):
            return {}
        return {
            column: next(row.cells[column].reason for row in scored)
            for column in self.columns
            if all(row.cells[column].value is None for row in scored)
        }

    def metric(self, column: str) -> Metric:
        """Return what a column holds."""
        return metric(column)


@dataclass(frozen=True)
class Table:
    """A table, ready to be printed: our numbers, their companions, and the published ones apart."""

    name: str
    title: str
    profile: str
    seeds: tuple[int, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def rows(self) -> tuple[Row, ...]:
        """Our rows."""
        return self.blocks[0].rows
