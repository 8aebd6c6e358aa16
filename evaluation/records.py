"""Files of a finished scoring, read for tables and comparisons: what is not as we write it is named, never guessed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from evaluation.score import SUMMARY
from trace_lightning.artifacts import read_json
from trace_lightning.errors import UserError

OF_SUMMARY = {
    "protocol": dict,
    "protocol_digest": str,
    "n": int,
    "cases": list,
    "notes": list,
    "missing": list,
    "generated_dir": str,
    "reference_dir": str,
    "metrics": dict,
}


def scores_of(run: Path) -> Path:
    """Return the folder of a scoring, given it or the run that holds it as `scores/`.

    Raises:
        UserError: nothing was scored there.
    """
    found = next((folder for folder in (Path(run) / "scores", Path(run)) if (folder / SUMMARY).is_file()), None)
    if found is None:
        raise UserError(f"{run}: holds no {SUMMARY}; score its volumes first: python -m evaluation score")
    return found


def read_summary(scores: Path) -> dict[str, Any]:
    """Return `summary.json` of a scoring's folder.

    Raises:
        UserError: it is absent or damaged.
    """
    path = Path(scores) / SUMMARY
    summary = read_json(path)
    for key, kind in OF_SUMMARY.items():
        if not isinstance(summary, dict) or not isinstance(summary.get(key), kind):
            raise UserError(f"{path}: {key} is not as it was written; delete the folder and score again")
    for name, entry in summary["metrics"].items():
        if not isinstance(entry, dict) or not _is_number(entry.get("value")):
            raise UserError(f"{path}: metrics: {name} has no number as its value; delete the folder and score again")
    return summary


def read_measures(scores: Path, case_id: str) -> dict[str, float | None]:
    """Return what was measured of one volume, by name; None where it cannot be.

    Raises:
        UserError: the file is absent or damaged, or holds what is no finite number.
    """
    path = Path(scores) / "per_case" / f"{case_id}.json"
    record = read_json(path)
    measures = record.get("measures") if isinstance(record, dict) else None
    if not isinstance(measures, dict):
        raise UserError(f"{path}: holds no measures; delete it and score again")
    for name, value in measures.items():
        if not _is_number(value):
            raise UserError(f"{path}: measures: {name}={value!r} is no finite number; delete the file and score again")
    return measures


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value))
