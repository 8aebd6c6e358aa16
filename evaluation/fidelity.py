"""Overlap and surface distance of two label maps: Dice, Jaccard and the 95th percentile Hausdorff distance in mm.

Conventions, the same for every method. A group absent from both maps is no measurement (None). A group that the
reference has and the generated volume lacks scores Dice 0, Jaccard 0 and, as HD95, the diagonal of the volume: finite,
so that it raises the mean instead of dropping out of it. A group that only the generated volume has is counted, and
left out of the means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

PERCENTILE = 95.0


@dataclass(frozen=True)
class Overlap:
    """How well one group of classes is met.

    Attributes:
        dice: 2 |A and B| / (|A| + |B|), in [0, 1], or None.
        jaccard: |A and B| / |A or B|, in [0, 1], or None.
        hd95_mm: symmetric 95th percentile Hausdorff distance, or None.
        state: `scored` where both have the group, else `missed`, `spurious` or `absent`.
    """

    dice: float | None
    jaccard: float | None
    hd95_mm: float | None
    state: Literal["scored", "missed", "spurious", "absent"]


def joint_histogram(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Count the pairs of labels of two uint8 maps of the same shape: (256, 256) int64, `first` along the rows."""
    if first.shape != second.shape:
        raise ValueError(f"label maps of different shapes: {first.shape} and {second.shape}")
    codes = first.ravel().astype(np.uint16) << 8 | second.ravel()
    return np.bincount(codes, minlength=1 << 16).reshape(256, 256)


def dice(first: np.ndarray, second: np.ndarray, ids: Sequence[int]) -> float | None:
    """Return the Dice coefficient of the voxels whose label is in `ids`, or None where neither map has any."""
    return dice_of(joint_histogram(first, second), ids)


def dice_of(histogram: np.ndarray, ids: Sequence[int]) -> float | None:
    """Return the Dice coefficient of a group from a joint histogram, or None where neither map has the group."""
    both, one, other = _counts(histogram, ids)
    return 2 * both / (one + other) if one + other else None


def overlaps(
    generated: np.ndarray,
    reference: np.ndarray,
    spacing_mm: tuple[float, float, float],
    groups: Mapping[str, Sequence[int]],
) -> dict[str, Overlap]:
    """Compare two label maps group by group.

    Args:
        generated: (D, H, W) uint8 labels.
        reference: (D, H, W) uint8 labels.
        spacing_mm: voxel size along (D, H, W).
        groups: name -> the ids that make up the group.
    """
    histogram = joint_histogram(generated, reference)
    return {name: _overlap(histogram, generated, reference, spacing_mm, ids) for name, ids in groups.items()}


def _overlap(
    histogram: np.ndarray,
    generated: np.ndarray,
    reference: np.ndarray,
    spacing_mm: tuple[float, float, float],
    ids: Sequence[int],
) -> Overlap:
    both, made, real = _counts(histogram, ids)
    if not real:
        return Overlap(None, None, None, "spurious" if made else "absent")
    if not made:
        return Overlap(0.0, 0.0, float(np.linalg.norm(np.multiply(reference.shape, spacing_mm))), "missed")
    member = np.zeros(256, bool)
    member[list(ids)] = True
    distance = hausdorff_mm(member[generated], member[reference], spacing_mm)
    return Overlap(2 * both / (made + real), both / (made + real - both), distance, "scored")


def _counts(histogram: np.ndarray, ids: Sequence[int]) -> tuple[int, int, int]:
    """Return the voxels of a group in both maps, in the first and in the second."""
    rows = histogram[list(ids)]
    return int(rows[:, list(ids)].sum()), int(rows.sum()), int(histogram[:, list(ids)].sum())


def hausdorff_mm(
    first: np.ndarray, second: np.ndarray, spacing_mm: tuple[float, float, float], percentile: float = PERCENTILE
) -> float:
    """Return the larger of the two directed percentiles of surface-to-surface distance.

    The surface is the mask without its erosion by the 6-neighbourhood; voxels on the border of the volume belong to
    it. Distances are those between voxel centres.

    Args:
        first: (D, H, W) bool, not empty.
        second: (D, H, W) bool, not empty.
        spacing_mm: voxel size along (D, H, W).
        percentile: 100 for the Hausdorff distance itself.
    """
    from scipy.spatial import cKDTree

    points = [np.argwhere(surface(mask)) * np.asarray(spacing_mm) for mask in (first, second)]
    if not all(map(len, points)):
        raise ValueError("the Hausdorff distance of an empty mask is not defined")
    trees = [cKDTree(side) for side in points]
    there, back = trees[1].query(points[0])[0], trees[0].query(points[1])[0]
    return float(max(np.percentile(there, percentile), np.percentile(back, percentile)))


def surface(mask: np.ndarray) -> np.ndarray:
    """Return the voxels of a bool mask with a 6-neighbour outside the mask or outside the volume."""
    padded = np.pad(mask, 1)
    inside = mask.copy()
    for axis in range(mask.ndim):
        for start in (0, 2):
            window = [slice(1, -1)] * mask.ndim
            window[axis] = slice(start, start + mask.shape[axis])
            inside &= padded[tuple(window)]
    return mask & ~inside
