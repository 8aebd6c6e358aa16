"""Marks the cells of a table: the best of a column, and what differs from a named row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from evaluation.metrics import Metric, metric
from evaluation.paired import paired
from evaluation.records import read_measures
from evaluation.rows import COSTS, Row
from trace_lightning.errors import UserError


def with_best(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """Mark the best of each column among the generated rows that are given the same inputs."""
    peers: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(rows):
        if not row.is_real and row.inputs is not None:
            peers.setdefault(tuple(sorted(row.inputs)), []).append(index)
    cells = [dict(row.cells) for row in rows]
    for column in columns:
        better = metric(column).higher_is_better
        if better is None:
            continue
        for group in peers.values():
            found = ((index, cells[index][column].value) for index in group)
            values = {index: value for index, value in found if value is not None}
            if len(set(values.values())) < 2:
                continue
            best = (max if better else min)(values.values())
            for index in (index for index, value in values.items() if value == best):
                cells[index][column] = replace(cells[index][column], best=True)
    return [replace(row, cells=marked) for row, marked in zip(rows, cells, strict=True)]


def with_differences(rows: Sequence[Row], seeds: Sequence[int], against: str, table_path: Path) -> list[Row]:
    """Mark the cells whose volumes differ from those of one row, case by case and over all the seeds.

    Args:
        rows: with their scores on disk.
        seeds: the trainings.
        against: label of the row that the others are compared with.
        table_path: the table's file, to be named.

    Raises:
        UserError: there is no such row, or a score file is damaged.
    """
    if against not in (labels := [row.label for row in rows]):
        raise UserError(f"{table_path}: against: there is no row {against!r}; there are {', '.join(labels)}")
    theirs = _measures(rows[labels.index(against)])
    marked = []
    for row in rows:
        ours = {} if row.is_real or row.label == against else _measures(row)
        cells = {
            column: replace(cell, differs=_differs(metric(column), ours, theirs, seeds))
            if ours and cell.value is not None
            else cell
            for column, cell in row.cells.items()
        }
        marked.append(replace(row, cells=cells))
    return marked


def _measures(row: Row) -> dict[tuple[int, str], Mapping[str, float | None]]:
    """Return (seed, case id) -> the measures of a row's volumes."""
    return {
        (seed, case_id): read_measures(folder, case_id) for seed, folder in row.scores.items() for case_id in row.cases
    }


def _differs(spec: Metric, ours: Mapping, theirs: Mapping, seeds: Sequence[int]) -> bool:
    """Tell whether the interval of the paired difference excludes 0; costs and other statistics are not judged.

    Nor is a row whose training is lacking for one of the seeds: over fewer an interval would say something else.
    """
    if spec.statistic != "mean" or spec.name in COSTS:
        return False
    cases = dict.fromkeys(case for _, case in ours)
    values = [
        (*(side.get((seed, case), {}).get(spec.name) for side in (ours, theirs)), case, seed)
        for seed in seeds
        for case in cases
    ]
    found = paired(*zip(*values, strict=True))
    bounds = found.difference_interval if found else None
    return bounds is not None and not bounds[0] <= 0 <= bounds[1]
