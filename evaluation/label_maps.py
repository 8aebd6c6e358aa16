"""Compares label maps that are there already: two files, or two folders matched by name.

Labels are whole numbers of any meaning; 0 is background. The penalty of a missed label is the diagonal of the box
around all labels of the reference, since a label map has no body: it too does not change with the margin around.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from evaluation import fidelity
from evaluation.inputs import SUFFIXES, Matched, matched, volumes_in
from evaluation.report import write_report
from evaluation.summary import class_means, summed_up
from evaluation.workers import each
from trace_lightning.anatomy import grid as grid_module
from trace_lightning.anatomy.grid import resample
from trace_lightning.anatomy.labels import BACKGROUND
from trace_lightning.artifacts import (
    Stored,
    atomic_path,
    case_id_of,
    digest,
    file_digest,
    read_json,
    read_stored,
    sweep_temporary,
    write_json,
)
from trace_lightning.errors import UserError

SUMMARY = "summary.json"
COLUMNS = ("label", "dice", "jaccard", "hd95_mm", "state", "shared", "generated", "reference")
MOST_LABELS = 255  # in one pair of maps
TOLERANCE_MM = 0.01


@dataclass(frozen=True)
class Rules:
    """How label maps are compared.

    Attributes:
        ids: labels that are compared; None: those of either map.
        strict: score a label that only the generated map has as a missed one, instead of leaving it out of the means.
        resample: bring the generated map to the reference's grid (nearest voxel); else another grid is refused.
        voxels: give HD95 in voxels too.
    """

    ids: tuple[int, ...] | None = None
    strict: bool = False
    resample: bool = False
    voxels: bool = False

    def __post_init__(self) -> None:
        if self.ids is not None and (not self.ids or min(self.ids) < 1):
            raise UserError(f"ids: {list(self.ids)}; labels are whole numbers from 1 (0 is background)")

    def protocol(self) -> dict:
        """Return what decides the meaning of the numbers, JSON-ready."""
        return {
            "name": "label maps",
            "ids": None if self.ids is None else list(self.ids),
            "spurious": "penalise" if self.strict else "exclude",
            "resample": "nearest" if self.resample else "refused",
            "voxels": self.voxels,
            "hd95": "max of the two directed 95th percentiles between 6-neighbour surfaces",
            "missed": "dice 0, jaccard 0, hd95 the diagonal of the box around all labels of the reference; in a mean "
            "no distance counts for more",
            "macro": "mean over the labels of the reference, then over volumes",
            "micro": "voxels pooled over the labels of the reference, then mean over volumes",
        }


@dataclass(frozen=True)
class Maps:
    """The two label maps of a case, and where its record is kept."""

    case_id: str
    generated: Path
    reference: Path
    record: Path


def compare_label_maps(
    generated: Path,
    reference: Path,
    out_dir: Path,
    rules: Rules | None = None,
    *,
    jobs: int = 1,
    bootstrap_samples: int = 1000,
    progress: Callable[[int, int, str], None] = lambda done, total, note="": None,
) -> dict:
    """Compare label maps, resumably.

    Args:
        generated: a file, or a folder of files.
        reference: a file, or a folder of files under the same names.
        out_dir: receives `per_case/`, `per_case.csv` (a line a case and label), `summary.json` and `report.md`.
        rules: what is compared and how.
        jobs: processes; changes no number.
        bootstrap_samples: of the intervals; 0 for none.
        progress: told (cases done, cases in all, note).

    Returns:
        The summary, as written; `failed`, `missing` and `unmatched` as those of a scoring.

    Raises:
        UserError: a file and a folder, no names that match, or no case that could be compared.
    """
    rules, out_dir = rules or Rules(), Path(out_dir)
    made, real, names = _matched(Path(generated), Path(reference))
    sweep_temporary(out_dir)
    cases = [Maps(name, made[name], real[name], out_dir / "per_case" / f"{name}.json") for name in names.both]
    records, failed = {}, {}
    for case, (record, error) in each(_compare_one, cases, rules, jobs, progress, lambda case: case.case_id):
        if error is None:
            records[case.case_id] = record
        else:
            failed[case.case_id] = error
    if not records:
        raise UserError("; ".join(failed.values()))
    in_order = [records[name] for name in sorted(records)]
    protocol = rules.protocol()
    summary = {
        "protocol": protocol,
        "protocol_digest": digest(protocol),
        "bootstrap_samples": bootstrap_samples,
        "n": len(in_order),
        "cases": [record["case_id"] for record in in_order],
        "missing": list(names.missing),
        "unmatched": list(names.unmatched),
        "failed": dict(sorted(failed.items())),
        "generated_dir": os.path.relpath(generated, out_dir),
        "reference_dir": os.path.relpath(reference, out_dir),
        "notes": [],
        "groups": {},
        "classes": class_means(in_order),
        "metrics": {name: summed_up(name, in_order, bootstrap_samples) for name in in_order[0]["measures"]},
    }
    _write_csv(out_dir / "per_case.csv", in_order, rules)
    write_report(out_dir / "report.md", summary)
    write_json(out_dir / SUMMARY, summary)
    return summary


def _matched(generated: Path, reference: Path) -> tuple[Mapping[str, Path], Mapping[str, Path], Matched]:
    for path in (generated, reference):
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
    if generated.is_dir() != reference.is_dir():
        raise UserError(f"{generated} and {reference}: give two files or two folders")
    if generated.is_dir():
        made, real = volumes_in(generated), volumes_in(reference)
        return made, real, matched(made, real)
    for path in (generated, reference):
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"{path}: not a label map; there are {', '.join(SUFFIXES)}")
    name = case_id_of(generated)
    return {name: generated}, {name: reference}, Matched((name,), (), ())


def _compare_one(case: Maps, rules: Rules) -> tuple[dict | None, str | None]:
    """Return the record of a case, kept or new, or why there is none."""
    try:
        code = [file_digest(Path(module.__file__)) for module in (fidelity, grid_module)] + [
            file_digest(Path(__file__))
        ]
        key = digest([file_digest(case.generated), file_digest(case.reference), rules.protocol(), code])
        known = read_json(case.record) if case.record.exists() else {}
        if known.get("key") != key:
            known = {"key": key, "case_id": case.case_id} | _compare(case, rules)
            write_json(case.record, known)
        return known, None
    except UserError as error:
        return None, str(error)


def _compare(case: Maps, rules: Rules) -> dict:
    made, real = (read_label_map(path) for path in (case.generated, case.reference))
    spacing_mm, labels = real.grid.spacing_mm, made.array
    if not made.grid.equals(real.grid, TOLERANCE_MM):
        if not rules.resample:
            raise UserError(
                f"{case.generated}: lies on another grid than {case.reference}: shape {made.grid.shape} and "
                f"{real.grid.shape} (D, H, W), spacing {_mm(made.grid.spacing_mm)} and {_mm(spacing_mm)} mm, first "
                f"voxel at {_mm(made.grid.affine[:3, 3])} and {_mm(real.grid.affine[:3, 3])}; --resample brings it to "
                "the reference's (nearest voxel)"
            )
        labels = resample(labels, made.grid, real.grid, 0, BACKGROUND)
    (labels, reference), code_of = _coded(labels, real.array, case)
    ids = sorted(code_of) if rules.ids is None else rules.ids
    codes = {str(i): [code_of[i]] if i in code_of else [] for i in ids}
    asked = codes | {"foreground": [code for (code,) in filter(None, codes.values())]}
    box = fidelity.bounding_box(reference != 0)

    def compare(step: tuple[float, float, float]) -> tuple[dict[str, fidelity.Overlap], float]:
        penalty = fidelity.diagonal_mm(box, step)
        return fidelity.overlaps(labels, reference, step, asked, penalty, rules.strict), penalty

    found, penalty = compare(spacing_mm)
    rows = [{"label": i} | asdict(found[str(i)]) for i in ids]
    means = fidelity.summed_up([found[str(i)] for i in ids], penalty)
    whole = {f"{name}_foreground": fidelity.bounded(found["foreground"], name, penalty) for name in fidelity.MEASURES}
    if rules.voxels:
        in_voxels, most = compare((1.0, 1.0, 1.0))
        for row in rows:
            row["hd95_voxels"] = in_voxels[str(row["label"])].hd95_mm
        means["hd95_voxels"] = fidelity.summed_up([in_voxels[str(i)] for i in ids], most)["hd95_mm"]
    numbers = means | whole
    reasons = dict.fromkeys(numbers, "the reference holds none of the labels")
    return {"measures": numbers, "reasons": reasons, "labels": rows, "penalty_mm": penalty}


def read_label_map(path: Path) -> Stored:
    """Read a label map in any dtype into canonical orientation, its labels as whole numbers.

    Raises:
        UserError: not readable, or holding anything but whole numbers from 0.
    """
    stored = read_stored(path)
    array = stored.array
    if not np.issubdtype(array.dtype, np.integer):
        whole = np.rint(array) if np.isfinite(array).all() else None
        if whole is None or not np.array_equal(whole, array):
            raise UserError(f"{path}: a label map holds whole numbers; this one holds others")
        array = whole.astype(np.int64)
    if array.size == 0 or array.min() < 0:
        raise UserError(f"{path}: labels are whole numbers from 0; found {array.min() if array.size else 'no voxel'}")
    return Stored(np.ascontiguousarray(array), stored.grid, stored.header_affine)


def _coded(first: np.ndarray, second: np.ndarray, case: Maps) -> tuple[list[np.ndarray], dict[int, int]]:
    """Return both maps as uint8, and which code stands for which label: itself, unless labels exceed 255."""
    if max(first.max(), second.max()) <= MOST_LABELS:
        maps = [side.astype(np.uint8, copy=False) for side in (first, second)]
        present = np.union1d(*(np.flatnonzero(_counts(side)) for side in maps))
        return maps, {int(i): int(i) for i in present if i}
    present = np.union1d(np.unique(first), np.unique(second))
    present = present[present != 0]
    if len(present) > MOST_LABELS:
        raise UserError(f"{case.generated}: {len(present)} different labels in the pair; {MOST_LABELS} can be compared")
    maps = [np.where(side == 0, 0, np.searchsorted(present, side) + 1).astype(np.uint8) for side in (first, second)]
    return maps, {int(i): code for code, i in enumerate(present, start=1)}


def _counts(labels: np.ndarray) -> np.ndarray:
    return sum(np.bincount(plane.ravel(), minlength=256) for plane in labels)


def _mm(values: Iterable[float]) -> str:
    return " x ".join(f"{value:g}" for value in np.round(list(values), 4))


def _write_csv(path: Path, records: Sequence[Mapping], rules: Rules) -> None:
    columns = (*COLUMNS, *(("hd95_voxels",) if rules.voxels else ()))
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", *columns])
        for record in records:
            for row in record["labels"]:
                writer.writerow([record["case_id"], *("" if row[c] is None else row[c] for c in columns)])
