"""Intervals by the bootstrap over volumes: slices of one volume are no independent witnesses, volumes are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEVEL = 0.95


def interval(values: Sequence[float], samples: int = 1000, seed: int = 0) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of the mean over volumes, or None for fewer than two volumes.

    Args:
        values: one number a volume.
        samples: bootstrap samples; 0 for no interval.
        seed: of the resampling.
    """
    numbers = np.asarray(values, np.float64)
    if len(numbers) < 2 or not samples:
        return None
    picked = np.random.default_rng(seed).integers(len(numbers), size=(samples, len(numbers)))
    low, high = np.percentile(numbers[picked].mean(axis=1), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)
