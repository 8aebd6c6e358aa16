"""Gathers a table from a YAML file and the score files of its rows.

Reads `<runs>/<profile>/<experiment>/seed<k>/scores/summary.json` (`ground_truth/scores/` for the real volumes, which no
seed changes) and nothing of the code that made them. A row that could not be run says why in `unavailable.json` beside
its `scores/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.metrics import Metric, metric
from evaluation.paired import paired
from evaluation.records import read_measures, read_summary
from evaluation.score import SUMMARY
from trace_lightning.artifacts import read_json
from trace_lightning.errors import UserError

GROUND_TRUTH, PUBLISHED = "ground_truth", "published"
COSTS = ("slices_per_second", "evaluations_per_slice", "parameters_m", "peak_memory_gb", "train_memory_gb")
KEYS = {
    "name": str,
    "title": str,
    "columns": list,
    "companions": list,
    "published": str,
    "against": str,
    "rows": list,
}
NEEDED = ("name", "columns", "rows")


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
    reason: str | None = None
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


def gather(table_path: Path, profile: str, seeds: Sequence[int] = (0,), runs_dir: Path = Path("runs")) -> Table:
    """Build a table from the score files on disk.

    Args:
        table_path: the YAML file.
        profile: which of the runs.
        seeds: with several, means and spread over seeds.
        runs_dir: where the runs are.

    Raises:
        UserError: the YAML is wrong, a score file is damaged, or two rows were scored by different protocols.
    """
    table_path, folder = Path(table_path), Path(runs_dir) / profile
    data = _read_table(table_path)
    columns, companions = tuple(data["columns"]), tuple(data.get("companions") or ())
    published = _published(data["published"], table_path) if data.get("published") else None

    rows, protocols = [], {}
    for entry in data["rows"]:
        if entry.get("source") == PUBLISHED:
            _require_published(entry["label"], published, table_path)
            continue
        is_real = entry.get("source") == GROUND_TRUTH
        if is_real:
            folders = {seeds[0]: folder / GROUND_TRUTH}
        else:
            folders = {seed: folder / entry["experiment"] / f"seed{seed}" for seed in seeds}
        rows.append(_row(entry["label"], folders, columns + companions, is_real, protocols))
    rows = _with_best(rows, columns + companions)
    if against := data.get("against"):
        rows = _with_differences(rows, seeds, str(against), table_path)

    shown = ", ".join(map(str, seeds))
    ours = (
        f"profile {profile}, seed {shown}"
        if len(seeds) == 1
        else f"profile {profile}, seeds {shown}: mean ± standard deviation"
    )
    blocks = [Block(f"Measured here: {ours}", columns, tuple(rows))]
    if companions:
        blocks.append(Block("Beside it", companions, tuple(rows), beside=True))
    if published:
        blocks.append(published)
    title = str(data.get("title") or data["name"])
    return Table(data["name"], title, profile, tuple(seeds), tuple(blocks), _notes(rows, seeds, against))


def _read_table(path: Path) -> dict:
    data = read_yaml(path)
    if unknown := [key for key in data if key not in KEYS]:
        raise UserError(f"{path}: unknown key {unknown[0]!r}; a table has {', '.join(KEYS)}")
    for key, kind in KEYS.items():
        if key in NEEDED and not data.get(key):
            raise UserError(f"{path}: needs the key {key!r}")
        if data.get(key) is not None and not isinstance(data[key], kind):
            raise UserError(f"{path}: {key}={data[key]!r} is no {'list' if kind is list else 'text'}")
    if Path(data["name"]).name != data["name"]:
        raise UserError(f"{path}: name={data['name']!r} is a folder's name, without any /")
    for column in [*data["columns"], *(data.get("companions") or ())]:
        if not isinstance(column, str) or metric(column) is None:
            raise UserError(f"{path}: column {column!r} is no metric; see `metrics` of a summary.json for their names")
    for entry in data["rows"]:
        source = entry.get("source") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or "label" not in entry or (source is None) == ("experiment" not in entry):
            raise UserError(f"{path}: row {entry} needs a label, and either an experiment or a source")
        if odd := [key for key in ("label", "experiment") if not isinstance(entry.get(key, ""), str)]:
            raise UserError(f"{path}: row {entry}: {odd[0]} is no text")
        if source not in (None, GROUND_TRUTH, PUBLISHED):
            raise UserError(f"{path}: row {entry['label']!r}: source is {GROUND_TRUTH} or {PUBLISHED}, got {source!r}")
    return data


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds keys and values.

    Raises:
        UserError: absent, or no such YAML.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        data = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds no keys")
    return data


def _row(
    label: str, folders: Mapping[int, Path], columns: Sequence[str], is_real: bool, protocols: dict[str, Path]
) -> Row:
    scored = {}
    for seed, folder in folders.items():
        path = folder / "scores" / SUMMARY
        if path.exists():
            scored[seed] = path, read_summary(path.parent)
    if not scored:
        reason = _why_absent(next(iter(folders.values())))
        return Row(label, {column: Cell(reason=reason) for column in columns}, reason=reason, is_real=is_real)

    for path, summary in scored.values():
        protocols.setdefault(summary["protocol_digest"], path)
        if len(protocols) > 1:
            _refuse_protocols(*protocols.values())
    summaries = [summary for _, summary in scored.values()]
    path, first = next(iter(scored.values()))
    notes = list(dict.fromkeys(note for summary in summaries for note in summary["notes"]))
    if len(scored) < len(folders):
        absent = ", ".join(str(seed) for seed in folders if seed not in scored)
        notes.append(f"not scored yet: seed {absent}")
    if first["missing"]:
        notes.append(f"{len(first['missing'])} real volumes have no generated one")
    return Row(
        label,
        {column: _cell(column, summaries, is_real) for column in columns},
        inputs=None if is_real or first["inputs"] is None else tuple(first["inputs"]),
        n=first["n"],
        notes=tuple(notes),
        is_real=is_real,
        volumes=path.parent / first["generated_dir"],
        reference=path.parent / first["reference_dir"],
        cases=tuple(first["cases"]),
        scores={seed: path.parent for seed, (path, _) in scored.items()},
    )


def _why_absent(folder: Path) -> str:
    path = folder / "unavailable.json"
    return read_json(path)["reason"] if path.exists() else f"not scored yet ({folder.name} of {folder.parent.name})"


def _refuse_protocols(first: Path, second: Path) -> None:
    one, other = read_json(first)["protocol"], read_json(second)["protocol"]
    differing = [f"{key}: {one.get(key)} / {other.get(key)}" for key in one | other if one.get(key) != other.get(key)]
    raise UserError(
        f"{first} and {second} were scored by different protocols ({'; '.join(differing)}); "
        "numbers in one column need one protocol: score them again with the same settings"
    )


def _cell(column: str, summaries: Sequence[Mapping], is_real: bool) -> Cell:
    spec = metric(column)
    found = [summary["metrics"].get(spec.name) for summary in summaries]
    entries = [entry for entry in found if entry is not None and entry["value"] is not None]
    if not entries:
        if is_real and spec.name in COSTS:
            return Cell(reason="real volumes are not generated")
        return Cell(reason=found[0]["reason"] if found[0] else f"{SUMMARY} holds no {spec.name}")
    scale = 100 if spec.percent else 1
    values = [entry["value"] * scale for entry in entries]
    one = entries[0] if len(summaries) == 1 else {}
    return Cell(
        value=float(np.mean(values)),
        low=None if one.get("low") is None else one["low"] * scale,
        high=None if one.get("high") is None else one["high"] * scale,
        spread=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        n=entries[0]["n"],
        d=entries[0].get("d"),
        floor=entries[0].get("floor"),
        few=bool(entries[0].get("warning")),
    )


def _with_best(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
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
            values = {index: cells[index][column].value for index in group if cells[index][column].value is not None}
            if len(set(values.values())) < 2:
                continue
            best = (max if better else min)(values.values())
            for index in (index for index, value in values.items() if value == best):
                cells[index][column] = replace(cells[index][column], best=True)
    return [replace(row, cells=marked) for row, marked in zip(rows, cells, strict=True)]


def _with_differences(rows: Sequence[Row], seeds: Sequence[int], against: str, table_path: Path) -> list[Row]:
    """Mark the cells whose volumes differ from those of one row, case by case and over all the seeds."""
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
    bounds = found and found.difference_interval
    return bounds is not None and not bounds[0] <= 0 <= bounds[1]


def _notes(rows: Sequence[Row], seeds: Sequence[int], against: str | None) -> tuple[str, ...]:
    said: dict[str, list[str]] = {}
    for row in rows:
        for note in row.notes:
            said.setdefault(note, []).append(row.label)
    generated = {row.label for row in rows if not row.is_real and row.reason is None}
    notes = ["bold: best of its column among rows with the same inputs; n: volumes scored"]
    if any(cell.low is not None for row in rows for cell in row.cells.values()):
        notes.append("intervals: 95 %, bootstrap over volumes")
    if any(cell.differs for row in rows for cell in row.cells.values()):
        over = "cases and trainings" if len(seeds) > 1 else "cases, of this one training"
        notes.append(
            f"*: differs from {against}: the 95 % t interval of the paired difference, over {over}, excludes 0 "
            "(each cell judged by itself)"
        )
    if any(row.n == 1 for row in rows):
        notes.append("one volume gives no interval")
    notes += _notes_of_sets(rows)
    for note, labels in said.items():
        notes.append(f"{'all rows' if len(generated) > 1 and generated <= set(labels) else '; '.join(labels)}: {note}")
    return tuple(notes)


def _notes_of_sets(rows: Sequence[Row]) -> list[str]:
    """Return for each distance between sets its sizes, its floor, and whether it is largely bias."""
    notes = []
    for column in dict.fromkeys(column for row in rows for column in row.cells):
        cells = [row.cells[column] for row in rows if row.cells[column].d]
        if not cells:
            continue
        spec, sizes = metric(column), sorted({cell.n for cell in cells})
        said = f"{column}: n = {' to '.join(map(str, sizes[:: max(1, len(sizes) - 1)]))} samples, d = {cells[0].d}"
        floor = next((cell.floor for cell in cells if cell.floor is not None), None)
        if floor is not None:
            said += f"; real against real, split in halves: {floor:.{spec.digits}f}"
        notes.append(said + ("; n < 2d: largely bias, compare no further than the floor" if cells[0].few else ""))
    if notes and any(row.is_real for row in rows):
        notes.append("the real volumes' distance to themselves is 0; what fresh real volumes have is the floor")
    return notes


def _published(reference: str, table_path: Path) -> Block:
    """Read published numbers: `file#key`, the file relative to the folder above the table's (the repository)."""
    name, _, key = str(reference).partition("#")
    path = table_path.resolve().parent.parent / name
    data = read_yaml(path)
    if not isinstance(data.get(key), dict):
        raise UserError(f"{table_path}: published: {path} has no table {key!r}; it has {', '.join(data)}")
    entry = data[key]
    columns = tuple(entry["columns"])
    rows = []
    for label, printed in entry["rows"].items():
        numbers = str(printed).split()
        if len(numbers) != len(columns):
            raise UserError(f"{path}: {key}: row {label!r} has {len(numbers)} numbers for {len(columns)} columns")
        rows.append(Row(label, {column: Cell(text=text) for column, text in zip(columns, numbers, strict=True)}))
    return Block(f"As published: {entry['title']}", columns, tuple(rows), source=entry["source"])


def _require_published(label: str, published: Block | None, table_path: Path) -> None:
    labels = [row.label for row in published.rows] if published else []
    if label not in labels:
        raise UserError(
            f"{table_path}: row {label!r} has no published numbers; there are {', '.join(labels) or 'none'}"
        )
