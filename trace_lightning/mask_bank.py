"""Masks of training patients, for rows that are given no mask of the test patient."""

from __future__ import annotations

import numpy as np

from trace_lightning.anatomy.grid import Grid
from trace_lightning.config import Experiment
from trace_lightning.data.cache import PreparedCase, open_prepared

NEAREST = 5


def draw_labels(experiment: Experiment, grid: Grid, seed: int) -> np.ndarray:
    """Return the labels of a training patient, stretched along z to the slices of `grid`.

    Args:
        experiment: its training patients are the bank.
        grid: (D, size, size) of the volume wanted; only its length is looked at.
        seed: of the volume; draws one of the five scans that are nearest in length.

    Returns:
        (D, size, size) uint8 VISTA3D ids.
    """
    wanted_mm = _length_mm(grid)

    def distance(case: PreparedCase) -> tuple[float, str]:
        return abs(_length_mm(case.grid) - wanted_mm), case.case_id

    nearest = sorted(open_prepared(experiment).cases("train"), key=distance)[:NEAREST]
    labels = nearest[seed % len(nearest)].labels
    num_slices = grid.shape[0]
    planes = (np.arange(num_slices) + 0.5) * len(labels) / num_slices
    return np.ascontiguousarray(labels[planes.astype(int)])


def _length_mm(grid: Grid) -> float:
    return grid.shape[0] * grid.spacing_mm[0]
