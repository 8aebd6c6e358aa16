"""What the metadata table says of how a volume was measured and stored: rescaling, spacing, place."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trace_lightning.anatomy.grid import Grid
from trace_lightning.anatomy.state import Decision, Rescale, Version, refused

COLUMNS = (  # of the table
    "RescaleSlope",
    "RescaleIntercept",
    "XYSpacing",
    "ZSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
)
SPACING_MM = (0.1, 50.0)
MAX_EXTENT_MM = 2500.0
BLANK_SPACING_MM = (1.0, 1.0, 1.0)  # of every v1 header


@dataclass(frozen=True)
class Acquisition:
    """A row's geometry and rescaling; None where the table says nothing.

    Attributes:
        rescale: from stored values to HU.
        spacing_mm: from slice to slice, row to row, column to column.
        position_mm: of the centre of the first voxel, LPS (DICOM).
        orientation: direction cosines along a row, then along a column, LPS (DICOM).
    """

    rescale: Rescale | None = None
    spacing_mm: tuple[float, float, float] | None = None
    position_mm: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> Acquisition:
        """Read the columns `COLUMNS`, absent or blank ones as None.

        Raises:
            ValueError: a column is not of DICOM's form; names it.
        """
        slope, intercept = _numbers(row, "RescaleSlope", 1), _numbers(row, "RescaleIntercept", 1)
        in_plane, along_z = _numbers(row, "XYSpacing", 2), _numbers(row, "ZSpacing", 1)
        if slope is not None and slope[0] <= 0:
            raise ValueError(f"RescaleSlope {slope[0]:g} is not positive")
        orientation = _numbers(row, "ImageOrientationPatient", 6)
        if orientation is not None:
            axes = np.reshape(orientation, (2, 3))
            if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-3):
                raise ValueError(f"ImageOrientationPatient {list(orientation)}: not two unit vectors at a right angle")
        return cls(
            rescale=Rescale(slope[0], intercept[0]) if slope and intercept else None,
            spacing_mm=(*along_z, *in_plane) if in_plane and along_z else None,
            position_mm=_numbers(row, "ImagePositionPatient", 3),
            orientation=orientation,
        )

    def affine(self) -> np.ndarray | None:
        """Return the 4x4 NIfTI affine (RAS+) of the stored array, slices along its third axis; None if not known.

        DICOM numbers slices along the normal of row and column direction.
        """
        if self.spacing_mm is None or self.position_mm is None or self.orientation is None:
            return None
        along_row, along_column = np.reshape(self.orientation, (2, 3))
        between_slices, between_rows, between_columns = self.spacing_mm
        affine = np.eye(4)
        affine[:3, 0] = along_row * between_columns
        affine[:3, 1] = along_column * between_rows
        affine[:3, 2] = np.cross(along_row, along_column) * between_slices
        affine[:3, 3] = self.position_mm
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def check_geometry(
    version: Version, grid: Grid, header_affine: np.ndarray, acquisition: Acquisition
) -> Decision | None:
    """Refuse a volume whose geometry is impossible, blank, or not what the table says; None if nothing speaks against.

    Args:
        version: whose header is true (v2) or blank (v1).
        grid: canonical, as it would be used.
        header_affine: as written in the file.
        acquisition: of the table.
    """
    low, high = SPACING_MM
    extent_mm = max(n * step for n, step in zip(grid.shape, grid.spacing_mm, strict=True))
    used, listed = _mm(grid.spacing_mm), acquisition.spacing_mm
    if not all(low <= step <= high for step in grid.spacing_mm) or extent_mm > MAX_EXTENT_MM:
        return refused("spacing_impossible", f"{grid.shape} voxels of {used} mm (slice, row, column)")
    header = np.linalg.norm(header_affine[:3, :3], axis=0)[::-1]
    blank = np.array_equal(header, BLANK_SPACING_MM)
    if listed is None or (version == "v1" and blank):
        return None
    found = header if version == "v1" else np.array(grid.spacing_mm)
    if np.allclose(found, listed, rtol=5e-3, atol=0.01):
        return None
    if version == "v2" and blank:
        text = f"voxels of 1 mm in the header, {_mm(listed)} mm in the table"
        return refused("blank_header", text, mendable=acquisition.affine() is not None)
    return refused("spacing_disagrees", f"voxels of {_mm(found)} mm in the header, {_mm(listed)} mm in the table")


def _numbers(row: Mapping[str, str], name: str, count: int) -> tuple[float, ...] | None:
    """Read "1.5" or "[0.7, 0.7]"."""
    text = (row.get(name) or "").strip()
    if text in ("", "nan"):
        return None
    try:
        value = ast.literal_eval(text)
        numbers = tuple(float(number) for number in (value if isinstance(value, list | tuple) else [value]))
    except (ValueError, TypeError, SyntaxError):
        numbers = ()
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(f"{name} {text!r} is not {'a number' if count == 1 else f'a list of {count} numbers'}")
    return numbers


def _mm(spacing: tuple[float, ...] | np.ndarray) -> str:
    return " x ".join(f"{step:.4g}" for step in spacing)
