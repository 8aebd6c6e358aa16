"""Overlap and surface distance of two label maps: Dice, Jaccard and the 95th percentile Hausdorff distance in mm.

Conventions, the same for every method:

- `absent`: a class that neither map has is no measurement (None).
- `missed`: a class of the reference that the generated map lacks scores Dice 0, Jaccard 0 and, as HD95, a penalty:
  finite, so that it raises the mean instead of dropping out of it. The penalty is the diagonal of a box that belongs to
  the reference alone (its body, else its labels), so a margin of air around the volume changes nothing.
- `spurious`: a class that only the generated map has is counted and left out of the means, or, strictly, scored as a
  missed one.

In a mean no distance counts for more than the penalty. So leaving a class out never improves the score of that class,
of its group, or a mean over classes. Pooled over voxels (micro, foreground) it is so wherever the class overlapped by
at least half the pooled Dice: a class in an entirely wrong place costs more voxels than none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

PERCENTILE = 95.0
MEASURES = ("dice", "jaccard", "hd95_mm")
Spacing = tuple[float, float, float]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Overlap:
    """How well one class, or one group of classes, is met.

    Attributes:
        dice: 2 |A and B| / (|A| + |B|), in [0, 1], or None.
        jaccard: |A and B| / |A or B|, in [0, 1], or None.
        hd95_mm: symmetric 95th percentile Hausdorff distance, or None; may exceed the penalty.
        state: `scored` where both have the group, else `missed`, `spurious` or `absent`.
        shared: voxels in both maps.
        generated: voxels in the generated map.
        reference: voxels in the reference.
    """

    dice: float | None
    jaccard: float | None
    hd95_mm: float | None
    state: Literal["scored", "missed", "spurious", "absent"]
    shared: int = 0
    generated: int = 0
    reference: int = 0


def joint_histogram(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Count the pairs of labels of two uint8 maps of the same shape: (256, 256) int64, `first` along the rows."""
    if first.shape != second.shape:
        raise ValueError(f"label maps of different shapes: {first.shape} and {second.shape}")
    counts = np.zeros(1 << 16, np.int64)
    for a, b in zip(first, second, strict=True):  # a slice at a time: bincount widens what it counts to 8 bytes
        counts += np.bincount((a.astype(np.uint16) << 8 | b).ravel(), minlength=1 << 16)
    return counts.reshape(256, 256)


def dice(first: np.ndarray, second: np.ndarray, ids: Sequence[int]) -> float | None:
    """Return the Dice coefficient of the voxels whose label is in `ids`, or None where neither map has any."""
    return dice_of(joint_histogram(first, second), ids)


def dice_of(histogram: np.ndarray, ids: Sequence[int]) -> float | None:
    """Return the Dice coefficient of a group from a joint histogram, or None where neither map has the group."""
    both, one, other = _counts(histogram, ids)
    return 2 * both / (one + other) if one + other else None


def _counts(histogram: np.ndarray, ids: Sequence[int]) -> tuple[int, int, int]:
    """Return the voxels of a group in both maps, in the first and in the second."""
    rows = histogram[list(ids)]
    return int(rows[:, list(ids)].sum()), int(rows.sum()), int(histogram[:, list(ids)].sum())


def overlaps(
    generated: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Spacing,
    groups: Mapping[str, Sequence[int]],
    penalty_mm: float | None = None,
    strict: bool = False,
) -> dict[str, Overlap]:
    """Compare two label maps, class by class or group by group; the maps are looked through once, not once a class.

    Args:
        generated: (D, H, W) uint8 labels.
        reference: (D, H, W) uint8 labels.
        spacing_mm: voxel size along (D, H, W).
        groups: name -> the ids (of 1..255) that make up the group; groups may overlap.
        penalty_mm: HD95 of a missed group; None: the diagonal of the box around all labels of the reference.
        strict: score a spurious group as a missed one.
    """
    histogram = joint_histogram(generated, reference)
    if penalty_mm is None:
        penalty_mm = diagonal_mm(bounding_box(reference != 0), spacing_mm)
    found = {}
    for layer in _layers(groups):
        code_of = np.zeros(256, np.uint8)
        for code, name in enumerate(layer, start=1):
            code_of[list(groups[name])] = code
        surfaces = [surfaces_by_label(code_of[labels]) for labels in (generated, reference)]
        for code, name in enumerate(layer, start=1):
            both, made, real = counts = _counts(histogram, groups[name])
            if made and real:
                distance = _percentile_mm(*(side[code] for side in surfaces), reference.shape, spacing_mm, PERCENTILE)
                scores, state = (2 * both / (made + real), both / (made + real - both), distance), "scored"
            elif real or (made and strict):
                scores, state = (0.0, 0.0, penalty_mm), "missed" if real else "spurious"
            else:
                scores, state = (None, None, None), "spurious" if made else "absent"
            found[name] = Overlap(*scores, state, *counts)
    return {name: found[name] for name in groups}


def _layers(groups: Mapping[str, Sequence[int]]) -> list[list[str]]:
    """Share out groups so that those of one layer have no id in common."""
    layers: list[tuple[list[str], set[int]]] = []
    for name, ids in groups.items():
        names, used = next((layer for layer in layers if layer[1].isdisjoint(ids)), (None, None))
        if names is None:
            names, used = [], set()
            layers.append((names, used))
        names.append(name)
        used.update(ids)
    return [names for names, _ in layers]


def summed_up(found: Iterable[Overlap], penalty_mm: float) -> dict[str, float | None]:
    """Return the means over classes or groups that have a score (macro), and what is pooled over voxels (micro).

    Args:
        found: of disjoint classes or groups.
        penalty_mm: what a distance counts for at most.

    Returns:
        `dice`, `jaccard`, `hd95_mm` (macro), `dice_micro`, `jaccard_micro` (over the same classes), `missed` and
        `spurious` (counts). None where nothing has a score.
    """
    found = list(found)
    scored = [overlap for overlap in found if overlap.dice is not None]
    means = {name: _mean([bounded(overlap, name, penalty_mm) for overlap in scored]) for name in MEASURES}
    shared, made, real = (sum(getattr(o, name) for o in scored) for name in ("shared", "generated", "reference"))
    return means | {
        "dice_micro": 2 * shared / (made + real) if scored else None,
        "jaccard_micro": shared / (made + real - shared) if scored else None,
        "missed": sum(overlap.state == "missed" for overlap in found),
        "spurious": sum(overlap.state == "spurious" for overlap in found),
    }


def bounded(overlap: Overlap, name: str, penalty_mm: float) -> float | None:
    """Return a measure of an overlap as it enters a mean: no distance counts for more than a missed class."""
    value = getattr(overlap, name)
    return min(value, penalty_mm) if name == "hd95_mm" and value is not None else value


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def bounding_box(mask: np.ndarray) -> Box | None:
    """Return the smallest box around a bool mask, None where it is empty."""
    spans = []
    for axis in range(mask.ndim):
        found = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(found):
            return None
        spans.append(slice(int(found[0]), int(found[-1]) + 1))
    return tuple(spans)


def diagonal_mm(box: Box | None, spacing_mm: Spacing) -> float:
    """Return the diagonal of a box of voxels, 0 for none."""
    if box is None:
        return 0.0
    return float(np.linalg.norm([(axis.stop - axis.start) * step for axis, step in zip(box, spacing_mm, strict=True)]))


def hausdorff_mm(first: np.ndarray, second: np.ndarray, spacing_mm: Spacing, percentile: float = PERCENTILE) -> float:
    """Return the larger of the two directed percentiles of surface-to-surface distance.

    The surface is the mask without its erosion by the 6-neighbourhood; voxels on the border of the volume belong to
    it. Distances are those between voxel centres.

    Args:
        first: (D, H, W) bool, not empty.
        second: (D, H, W) bool, not empty.
        spacing_mm: voxel size along (D, H, W).
        percentile: 100 for the Hausdorff distance itself.
    """
    surfaces = [surfaces_by_label(mask.view(np.uint8)).get(1) for mask in (first, second)]
    if any(side is None for side in surfaces):
        raise ValueError("the Hausdorff distance of an empty mask is not defined")
    return _percentile_mm(*surfaces, first.shape, spacing_mm, percentile)


def surfaces_by_label(labels: np.ndarray) -> dict[int, np.ndarray]:
    """Return the surface voxels of every label: those with a 6-neighbour of another label or outside the volume.

    Args:
        labels: (D, H, W) uint8; 0 is background.

    Returns:
        Label -> flat indices, ascending, int64.
    """
    surface = np.zeros(labels.shape, bool)
    for axis in range(labels.ndim):
        lower, upper = (
            tuple(side if a == axis else slice(None) for a in range(labels.ndim))
            for side in (slice(None, -1), slice(1, None))
        )
        differs = labels[lower] != labels[upper]
        surface[lower] |= differs
        surface[upper] |= differs
        for end in (0, -1):
            surface[tuple(end if a == axis else slice(None) for a in range(labels.ndim))] = True
    surface &= labels != 0
    where = np.flatnonzero(surface)
    owner = labels.reshape(-1)[where]
    where = where[np.argsort(owner, kind="stable")]
    counts = np.bincount(owner)
    ends = np.cumsum(counts)
    return {int(label): where[ends[label] - counts[label] : ends[label]] for label in np.flatnonzero(counts)}


def _percentile_mm(
    first: np.ndarray, second: np.ndarray, shape: tuple[int, int, int], spacing_mm: Spacing, percentile: float
) -> float:
    there, back = _directed_mm(first, second, shape, spacing_mm), _directed_mm(second, first, shape, spacing_mm)
    return float(max(np.percentile(there, percentile), np.percentile(back, percentile)))


def _directed_mm(
    source: np.ndarray, target: np.ndarray, shape: tuple[int, int, int], spacing_mm: Spacing
) -> np.ndarray:
    """Return the distance of each voxel of `source` to the nearest of `target`; those in both are not searched for."""
    from scipy.spatial import cKDTree

    def places_mm(where: np.ndarray) -> np.ndarray:
        return np.stack(np.unravel_index(where, shape), axis=-1) * np.asarray(spacing_mm)

    distances = np.zeros(len(source))
    apart = source[~np.isin(source, target, assume_unique=True)]
    if len(apart):
        # Trees without balancing and tight boxes are built sooner, and points of a lattice are found as fast in them.
        tree = cKDTree(places_mm(target), balanced_tree=False, compact_nodes=False)
        distances[: len(apart)] = tree.query(places_mm(apart))[0]
    return distances
