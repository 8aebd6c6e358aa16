"""One volume file, examined: whether it can be used, and in HU with true geometry if so. All reading goes this way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trace_lightning.anatomy.state import Decision, Version, decide, refused
from trace_lightning.artifacts import Volume, read_stored
from trace_lightning.data.acquisition import Acquisition, check_geometry
from trace_lightning.data.content import check_content

FILL_HU = -1024.0  # in place of NaN, where that is to be mended


class Examined(NamedTuple):
    """A decision, and the volume in HU, canonical; None if it is refused."""

    decision: Decision
    volume: Volume | None


def examine(
    path: Path, version: Version, acquisition: Acquisition, repair: bool = False, min_slices: int = 1
) -> Examined:
    """Read a volume and decide by evidence whether and how it is used.

    Args:
        path: NIfTI file.
        version: what its folder says of it.
        acquisition: its row in the metadata table.
        repair: mend contradictions that the evidence explains; else they are refused.
        min_slices: fewer are refused.

    Raises:
        UserError: the file is absent or damaged.
    """
    listed_affine = acquisition.affine()
    if version == "v1" and listed_affine is None:
        return Examined(refused("no_geometry", "the header of a v1 file is blank, and the table is silent too"), None)
    stored = read_stored(path, listed_affine if version == "v1" else None)
    objection = check_geometry(version, stored.grid, stored.header_affine, acquisition)
    mended = objection if objection is not None and objection.mendable and repair else None
    if mended is not None:
        stored = read_stored(path, listed_affine)
        objection = check_geometry("v1", stored.grid, stored.header_affine, acquisition)
    if objection is not None:
        return Examined(objection, None)
    if stored.grid.shape[0] < min_slices:
        return Examined(refused("too_few_slices", f"{stored.grid.shape[0]} slices, below {min_slices}"), None)
    decision = decide(stored.array, version, acquisition.rescale, repair)
    if decision.state == "refused":
        return Examined(decision, None)
    if mended is not None:
        decision = replace(decision, reason=mended.reason, text=f"{mended.text}: mended", mendable=True)
    hu = np.array(stored.array, np.float32, order="C")
    hu *= decision.rescale.slope
    hu += decision.rescale.intercept
    if decision.mendable:
        np.nan_to_num(hu, copy=False, nan=FILL_HU, posinf=FILL_HU, neginf=FILL_HU)
    objection = check_content(hu, stored.grid)
    if objection is not None:
        return Examined(objection, None)
    return Examined(decision, Volume(hu, stored.grid))
