"""Voxel grids: canonical orientation, in-plane and axial resampling, and transfer from one grid to another.

Arrays are (D, H, W). The canonical orientation is LPS in NIfTI order: W runs to the patient's left, H to the back,
D to the head; an axial slice drawn with row 0 on top is the usual radiological view.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Grid:
    """Where voxels lie.

    Attributes:
        shape: (D, H, W).
        affine: 4x4 float64, NIfTI convention: maps (w, h, d, 1) to RAS+ millimetres.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along (D, H, W) in mm."""
        w, h, d = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(d), float(h), float(w)

    def equals(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Tell whether both grids have the same shape and the same voxel centres."""
        return self.shape == other.shape and bool(np.abs(self.affine - other.affine).max() <= tolerance_mm)

    def resized(self, shape: tuple[int, int, int]) -> Grid:
        """Return the grid of another shape over the same field of view (voxel edges, not centres, coincide)."""
        factor = np.array([old / new for old, new in zip(self.shape[::-1], shape[::-1], strict=True)])
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, :3] * factor
        affine[:3, 3] = self.affine[:3, 3] + self.affine[:3, :3] @ ((factor - 1) / 2)
        d, h, w = shape
        return Grid((d, h, w), affine)

    def at_spacing(self, spacing_mm: tuple[float | None, float | None, float | None]) -> Grid:
        """Return the grid over the same field of view whose voxel size along (D, H, W) is nearest to `spacing_mm`.

        None keeps an axis. The field of view is kept exactly, so that the spacing is met up to half a voxel in all.
        """
        d, h, w = (
            n if want is None else max(1, round(n * have / want))
            for n, have, want in zip(self.shape, self.spacing_mm, spacing_mm, strict=True)
        )
        return self.resized((d, h, w))

    def to_json(self) -> dict:
        """Return a JSON-ready description."""
        return {"shape": list(self.shape), "affine": self.affine.tolist()}

    @classmethod
    def from_json(cls, data: dict) -> Grid:
        """Build the grid that `to_json` described."""
        return cls(tuple(data["shape"]), np.array(data["affine"], np.float64))


def resample(array: np.ndarray, source: Grid, target: Grid, order: int, fill: float) -> np.ndarray:
    """Transfer an array from one grid to another.

    Linear for images (with a Gaussian against aliasing along axes that get coarser), nearest for labels.

    Args:
        array: (D, H, W) on `source`.
        source: the grid of `array`.
        target: the grid wanted.
        order: 1 for images, 0 for labels.
        fill: value outside the field of view of `source`.

    Returns:
        (D, H, W) on `target`, in the dtype of `array`.
    """
    from scipy import ndimage

    if source.equals(target):
        return array.copy()
    to_source = np.linalg.inv(source.affine) @ target.affine  # (w, h, d) of target -> (w, h, d) of source
    matrix, offset = to_source[:3, :3][::-1, ::-1], to_source[:3, 3][::-1]
    image = array.astype(np.float32, copy=False) if order else array
    if order:
        factor = np.abs(matrix).sum(axis=1)  # source voxels a target voxel spans, along (D, H, W)
        sigma = np.where(factor > 1, np.sqrt(np.maximum(factor**2 - 1, 0)) / np.sqrt(12), 0)
        if sigma.any():
            image = ndimage.gaussian_filter(image, sigma, mode="nearest")
    # Pad by the edge: voxel centres of a finer grid reach half a voxel beyond the outermost centres of a coarse one.
    image = np.pad(image, 1, mode="edge")
    mode = {"mode": "constant", "cval": fill, "prefilter": False}
    out = ndimage.affine_transform(image, matrix, offset + 1, target.shape, order=order, **mode)
    return (
        np.rint(out).astype(array.dtype)
        if np.issubdtype(array.dtype, np.integer)
        else out.astype(array.dtype, copy=False)
    )
