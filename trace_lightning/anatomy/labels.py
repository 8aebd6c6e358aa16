"""VISTA3D class ids, their groups, and the mask granularities of the paper (2, 3 or 128 classes)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

BACKGROUND = 0
LUNG, BONE = 20, 21  # VISTA3D's composites: all that a threshold can tell apart
LUNG_LOBES = (28, 29, 30, 31, 32)
LUNG_TUMOR = 23
MAX_ID = 132
GRANULARITIES = (2, 3, 128)


@cache
def _table() -> dict:
    return json.loads((Path(__file__).parent / "vista3d_labels.json").read_text())


@cache
def names() -> dict[int, str]:
    """Return VISTA3D's id -> name, 0 (background) to 132."""
    return {int(key): entry["name"] for key, entry in _table()["classes"].items()}


@cache
def group_ids(group: str) -> tuple[int, ...]:
    """Return the ids of a group: lung, bone, airway, vessel, organ, muscle, lesion, nervous.

    The lung group holds the lobes, the composite 20 and tumours inside the lung (23); the bone group holds 21.
    """
    ids = {int(key) for key, entry in _table()["classes"].items() if entry["group"] == group}
    if not ids:
        raise KeyError(f"no VISTA3D class belongs to a group {group!r}")
    if group == "lung":
        ids |= {LUNG, LUNG_TUMOR, *LUNG_LOBES}
    return tuple(sorted(ids))


@cache
def group_names() -> tuple[str, ...]:
    """Return the groups that have classes."""
    found = dict.fromkeys(entry["group"] for entry in _table()["classes"].values())
    return tuple(group for group in found if group != "background")


@cache
def supported_ids() -> tuple[int, ...]:
    """Return the 127 ids that VISTA3D can be asked for, ascending."""
    return tuple(i for i in range(1, MAX_ID + 1) if i not in _table()["unsupported_ids"])


@cache
def everything_ids() -> tuple[int, ...]:
    """Return the 117 ids that VISTA3D's automatic path asks for, ascending: neither composites nor overlapping."""
    table = _table()
    left_out = {*map(int, table["composite_ids"]), *table["overlapping_ids"]}
    return tuple(i for i in supported_ids() if i not in left_out)


@cache
def granularity_map(num_classes: int) -> np.ndarray:
    """Return the table raw VISTA3D id -> class, uint8, shape (256,), for 2, 3 or 128 classes incl. background.

    2: any supported structure against background. 3: lungs (lobes, composite, tumour in the lung) 1, every other
    structure 2. 128: the supported ids in ascending order, 1..127 (raw ids reach 132). Unsupported ids are background.
    """
    table = np.zeros(256, np.uint8)
    supported = list(supported_ids())
    if num_classes == 2:
        table[supported] = 1
    elif num_classes == 3:
        table[supported] = 2
        table[list(group_ids("lung"))] = 1
    elif num_classes == 128:
        table[supported] = np.arange(1, 128)
    else:
        raise ValueError(f"num_mask_classes is one of {GRANULARITIES}, got {num_classes}")
    return table
