"""From a scan to the model's grid and its numbers: resampling, the HU window, and [-1, 1]. Pure functions."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from trace_lightning.anatomy.grid import Grid, resample
from trace_lightning.anatomy.labels import BACKGROUND
from trace_lightning.artifacts import Volume
from trace_lightning.config import DataConfig

Array = TypeVar("Array")  # numpy or torch


def model_grid(grid: Grid, data: DataConfig) -> Grid:
    """Return the grid on which a scan is modelled: (D, size, size).

    `in_plane: resize` keeps the whole field of view; `resample` has voxels of `spacing_mm` about the scan's centre,
    cropped or padded to `size`. Slices are the scan's own, or lie about `spacing_z_mm` apart.
    """
    along_z = _own_pixels(grid, data)
    if data.in_plane == "resize":
        return along_z.resized((along_z.shape[0], data.size, data.size))
    return _centred(along_z, data.size, data.spacing_mm)


def to_model_grid(volume: Volume, data: DataConfig) -> Volume:
    """Return a scan in the window [hu_min, hu_max] on the model's grid.

    The window comes first: padding far below air (-2048 and less) is air before it can bleed into its neighbours.
    """
    return _windowed(volume, model_grid(volume.grid, data), data)


def to_own_pixels(volume: Volume, data: DataConfig) -> Volume:
    """Return the slices of the model's grid with the scan's own pixels, in the window."""
    return _windowed(volume, _own_pixels(volume.grid, data), data)


def labels_to_model_grid(labels: np.ndarray, grid: Grid, data: DataConfig) -> np.ndarray:
    """Return (D, H, W) uint8 labels, given on a scan's grid, on the model's grid (nearest voxel)."""
    return resample(labels, grid, model_grid(grid, data), order=0, fill=BACKGROUND)


def hu_to_unit(hu: Array, data: DataConfig) -> Array:
    """Map HU in [hu_min, hu_max] to [-1, 1]."""
    return (hu - data.hu_min) * (2 / (data.hu_max - data.hu_min)) - 1


def unit_to_hu(unit: Array, data: DataConfig) -> Array:
    """Map [-1, 1] to HU in [hu_min, hu_max]; the inverse of `hu_to_unit`."""
    return (unit + 1) * ((data.hu_max - data.hu_min) / 2) + data.hu_min


def _own_pixels(grid: Grid, data: DataConfig) -> Grid:
    """Return a scan's grid with the slices of the model's."""
    return grid.at_spacing((data.spacing_z_mm, None, None))


def _windowed(volume: Volume, grid: Grid, data: DataConfig) -> Volume:
    hu = np.clip(volume.hu, data.hu_min, data.hu_max)
    return Volume(resample(hu, volume.grid, grid, order=1, fill=data.hu_min), grid)


def _centred(grid: Grid, size: int, spacing_mm: float) -> Grid:
    """Return the grid of size x size voxels of `spacing_mm` in plane that shares the centre of `grid`."""
    depth, height, width = grid.shape
    scale = np.array([spacing_mm / grid.spacing_mm[2], spacing_mm / grid.spacing_mm[1], 1.0])
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] * scale
    old_centre = np.array([(width - 1) / 2, (height - 1) / 2, 0.0])
    new_centre = np.array([(size - 1) / 2, (size - 1) / 2, 0.0])
    affine[:3, 3] = grid.affine[:3, 3] + grid.affine[:3, :3] @ old_centre - affine[:3, :3] @ new_centre
    return Grid((depth, size, size), affine)
