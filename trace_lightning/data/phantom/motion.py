"""Exact in-plane motion of the anatomy from slice to slice: the body frame carries every point along z."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trace_lightning.anatomy.grid import Grid
from trace_lightning.data.phantom.cage import Frame


def motion_path(root: Path, case_id: str) -> Path:
    """Return where a case's motion lies in a phantom's tree."""
    return Path(root) / "dataset" / "phantom_motion" / f"{case_id}.json"


def motion_of(frame: Frame, z_mm: np.ndarray) -> dict:
    """Return the JSON-ready frame of slices at heights `z_mm`: lists of the slices' z, centre and semi-axes in mm."""
    columns = dict(zip(("cx_mm", "cy_mm", "a_mm", "b_mm"), frame.at(np.asarray(z_mm, float)), strict=True))
    return {"z_mm": [round(float(z), 4) for z in z_mm]} | {
        name: [round(float(value), 4) for value in column] for name, column in columns.items()
    }


def pair_flow(motion: dict, grid: Grid, i: int, j: int) -> np.ndarray:
    """Return the flow from slice i to slice j: where the body coordinates of each pixel of i lie in j.

    Args:
        motion: what `motion_of` returned for the volume.
        grid: a canonical grid over the volume's field of view; it may be resized.
        i: slice of the grid that the pixels belong to.
        j: slice of the grid that they move to.

    Returns:
        (2, H, W) float32, displacement in pixels: along W, then along H.
    """
    _, height, width = grid.shape
    at = grid.affine[2, 3] + grid.affine[2, 2] * np.array([i, j])
    cx, cy, a, b = (np.interp(at, motion["z_mm"], motion[name]) for name in ("cx_mm", "cy_mm", "a_mm", "b_mm"))
    x = -(grid.affine[0, 3] + grid.affine[0, 0] * np.arange(width))  # canonical LPS against the affine's RAS
    y = -(grid.affine[1, 3] + grid.affine[1, 1] * np.arange(height))
    dx = (cx[1] - cx[0] + (x - cx[0]) * (a[1] / a[0] - 1)) / -grid.affine[0, 0]
    dy = (cy[1] - cy[0] + (y - cy[0]) * (b[1] / b[0] - 1)) / -grid.affine[1, 1]
    flow = np.empty((2, height, width), np.float32)
    flow[0], flow[1] = dx[None, :], dy[:, None]
    return flow
