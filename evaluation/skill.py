"""How much of what could be known about the anatomy a volume shows, beyond what any chest shows.

Two chests at the same height overlap by much, and even the real volume does not reproduce its mask once it is
segmented again. So Dice against the exact mask is placed between two marks:

    skill = (dice - chance) / (ceiling - chance)

chance is the mean Dice of the other real patients, ceiling that of the real volume itself after the same resampling.
"""

from __future__ import annotations

import numpy as np


def skill(dice: float, chance: float, ceiling: float) -> float | None:
    """Return the skill: 0 for another patient, 1 for the real volume; None unless the ceiling is above chance."""
    return (dice - chance) / (ceiling - chance) if ceiling > chance else None


def stretched(labels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return a label map at the same relative positions of another shape (nearest voxel, edges on edges)."""
    index = [((np.arange(new) + 0.5) * old / new).astype(np.intp) for old, new in zip(labels.shape, shape, strict=True)]
    return labels[np.ix_(*index)]
