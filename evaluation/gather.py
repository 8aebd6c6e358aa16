"""Gathers a table from a YAML file and the score files of its rows.

Reads `<runs>/<profile>/<experiment>/seed<k>/scores/summary.json` (`ground_truth/scores/` for the real volumes, which no
seed changes) and nothing of the code that made them. A row that could not be run says why in `unavailable.json` beside
its `scores/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluation.marks import with_best, with_differences
from evaluation.metrics import metric
from evaluation.records import read_summary
from evaluation.rows import COSTS, Block, Cell, Row, Table
from evaluation.score import SUMMARY
from evaluation.table_file import GROUND_TRUTH, PUBLISHED, published_block, read_table, require_published
from trace_lightning.artifacts import read_json
from trace_lightning.errors import UserError

FIDELITY = ("jaccard", "dice", "hd95_mm")


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
    data = read_table(table_path)
    columns, companions = tuple(data["columns"]), tuple(data.get("companions") or ())
    published = published_block(data["published"], table_path) if data.get("published") else None

    rows: list[Row] = []
    protocols: dict[str, Path] = {}
    for entry in data["rows"]:
        if entry.get("source") == PUBLISHED:
            require_published(entry["label"], published, table_path)
            continue
        is_real = entry.get("source") == GROUND_TRUTH
        if is_real:
            folders = {seeds[0]: folder / GROUND_TRUTH}
        else:
            folders = {seed: folder / entry["experiment"] / f"seed{seed}" for seed in seeds}
        rows.append(_row(entry["label"], folders, columns + companions, is_real, protocols))
    rows = with_best(rows, columns + companions)
    if against := data.get("against"):
        rows = with_differences(rows, seeds, str(against), table_path)

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
    notes = _notes(rows, seeds, against)
    for path in protocols.values():  # of one protocol: `_row` refuses others
        notes += _notes_of_fidelity(columns + companions, read_summary(path.parent)["protocol"])
    return Table(data["name"], title, profile, tuple(seeds), tuple(blocks), notes)


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


def _notes_of_fidelity(columns: Sequence[str], protocol: Mapping) -> tuple[str, ...]:
    """Return whose segmentations are compared: those of the paper are VISTA3D's."""
    asked = [spec.title.split("\n")[0] for spec in map(metric, columns) if spec.name in FIDELITY]
    if not asked:
        return ()
    parts = ", ".join(protocol["groups"]) if protocol["average"] == "groups" else "all classes"
    said = f"{', '.join(asked)}: segmentations by {protocol['segmenter']}, mean over {parts} of the real volume"
    theirs = "; the published ones are of VISTA3D's segmentations, over classes that the paper does not state"
    return (said + (theirs if protocol["segmenter"] != "vista3d" else ""),)


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
