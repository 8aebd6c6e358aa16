"""Intervals by the bootstrap over volumes: slices of one volume are no independent witnesses, volumes are.

Volumes of several trainings are crossed: each training is seen on the same cases. Both are then resampled, each by
itself (Owen and Eckles 2012, "Bootstrapping data arrays of arbitrary order"); over cases alone an interval would only
speak of the very trainings that were done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95


def interval(values: Sequence[float], samples: int = 1000, seed: int = 0) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of the mean over volumes, or None for fewer than two volumes.

    Args:
        values: one number a volume.
        samples: bootstrap samples; 0 for no interval.
        seed: of the resampling.
    """
    return crossed_interval(np.asarray(values, np.float64)[:, None], samples, seed)


def crossed_interval(values: np.ndarray, samples: int = 1000, seed: int = 0) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of the mean over cases and trainings, or None for fewer than two cases.

    Args:
        values: (cases, trainings), NaN where there is none; a case has at least one.
        samples: bootstrap samples; 0 for no interval.
        seed: of the resampling.
    """
    if len(values) < 2 or not samples:
        return None
    random = np.random.default_rng(seed)
    cases, trainings = (_times_drawn(random, n, samples) for n in values.shape)
    there = ~np.isnan(values)
    total = ((cases @ np.where(there, values, 0)) * trainings).sum(axis=1)
    number = ((cases @ there) * trainings).sum(axis=1)  # 0 where all that was drawn is missing
    low, high = np.percentile(total[number > 0] / number[number > 0], [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def _times_drawn(random: np.random.Generator, n: int, samples: int) -> np.ndarray:
    """Return how often each of n is among n that are drawn with replacement, (samples, n)."""
    times = np.zeros((samples, n))
    np.add.at(times, (np.arange(samples)[:, None], random.integers(n, size=(samples, n))), 1)
    return times


@dataclass(frozen=True)
class Paired:
    """Two methods on the same cases.

    Attributes:
        mean_a: mean of the first.
        mean_b: mean of the second.
        difference: mean of a - b.
        difference_interval: bootstrap over cases and trainings, or None for fewer than two cases.
        ratio: mean over volumes of a / b, or None where a value is not positive.
        ratio_interval: bootstrap over cases and trainings, or None.
        volumes: pairs of volumes.
        cases: cases among them.
        lower: volumes in which a < b.
    """

    mean_a: float
    mean_b: float
    difference: float
    difference_interval: tuple[float, float] | None
    ratio: float | None
    ratio_interval: tuple[float, float] | None
    volumes: int
    cases: int
    lower: int


def paired(
    a: Sequence[float],
    b: Sequence[float],
    cases: Sequence[str],
    trainings: Sequence[int] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Paired:
    """Compare two methods volume by volume.

    Args:
        a: values of the first method.
        b: values of the second, in the same order.
        cases: the case of each value.
        trainings: the training (its seed) of each value, by which both methods are paired. Without, volumes of one
            case are one unit, and nothing is said of other trainings.
        samples: bootstrap samples.
        seed: of the resampling.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    trainings = np.zeros(len(a), int) if trainings is None else trainings
    if not len(a) == len(b) == len(cases) == len(trainings) > 0:
        raise ValueError("paired values need the same, non-zero length")
    _, row = np.unique(cases, return_inverse=True)
    _, column = np.unique(trainings, return_inverse=True)

    def crossed(values: np.ndarray) -> np.ndarray:
        total, number = np.zeros((2, row.max() + 1, column.max() + 1))
        np.add.at(total, (row, column), values)
        np.add.at(number, (row, column), 1)
        return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)

    def mean(values: np.ndarray) -> float:
        return float(np.nanmean(crossed(values)))

    has_ratio = (a > 0).all() and (b > 0).all()
    return Paired(
        mean_a=mean(a),
        mean_b=mean(b),
        difference=mean(a - b),
        difference_interval=crossed_interval(crossed(a - b), samples, seed),
        ratio=mean(a / b) if has_ratio else None,
        ratio_interval=crossed_interval(crossed(a / b), samples, seed) if has_ratio else None,
        volumes=len(a),
        cases=int(row.max()) + 1,
        lower=int((a < b).sum()),
    )
