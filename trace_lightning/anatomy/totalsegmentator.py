"""TotalSegmentator's classes (version 2, task `total`) as VISTA3D ids."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

MAX_ID = 117


@cache
def _classes() -> dict[int, dict]:
    table = json.loads((Path(__file__).parent / "totalsegmentator_labels.json").read_text())
    return {int(key): entry for key, entry in table["classes"].items()}


@cache
def names() -> dict[int, str]:
    """Return TotalSegmentator's id -> name, 1 to 117."""
    return {key: entry["name"] for key, entry in _classes().items()}


@cache
def unmapped() -> tuple[int, ...]:
    """Return the ids without a VISTA3D class; they become background."""
    return tuple(key for key, entry in _classes().items() if entry["vista3d"] is None)


@cache
def vista3d_map() -> np.ndarray:
    """Return the table TotalSegmentator id -> VISTA3D id, uint8, shape (256,); 0 is background in both."""
    table = np.zeros(256, np.uint8)
    for key, entry in _classes().items():
        if entry["vista3d"] is not None:
            table[key] = entry["vista3d"]
    table.flags.writeable = False  # one table for all callers
    return table
