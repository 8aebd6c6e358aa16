"""Intervals by the bootstrap over volumes: slices of one volume are no independent witnesses, volumes are."""

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
    values = np.asarray(values, np.float64)
    if len(values) < 2 or not samples:
        return None
    picked = np.random.default_rng(seed).integers(len(values), size=(samples, len(values)))
    low, high = np.percentile(values[picked].mean(axis=1), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


@dataclass(frozen=True)
class Paired:
    """Two methods on the same cases.

    Attributes:
        mean_a: mean of the first.
        mean_b: mean of the second.
        difference: mean of a - b.
        difference_interval: bootstrap over cases, or None for fewer than two cases.
        ratio: mean over volumes of a / b, or None where a value is not positive.
        ratio_interval: bootstrap over cases, or None.
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


def paired(a: Sequence[float], b: Sequence[float], cases: Sequence[str], samples: int = 1000, seed: int = 0) -> Paired:
    """Compare two methods volume by volume.

    A case that occurs several times (several seeds) is one unit of the resampling: its volumes are averaged first.

    Args:
        a: values of the first method.
        b: values of the second, in the same order.
        cases: the case of each value.
        samples: bootstrap samples.
        seed: of the resampling.
    """
    a, b, cases = np.asarray(a, np.float64), np.asarray(b, np.float64), np.asarray(cases)
    if not len(a) == len(b) == len(cases) > 0:
        raise ValueError("paired values need the same, non-zero length")

    def by_case(values: np.ndarray) -> np.ndarray:
        return np.array([values[cases == case].mean() for case in np.unique(cases)])

    difference = by_case(a - b)
    ratio = by_case(a / b) if (a > 0).all() and (b > 0).all() else None
    return Paired(
        mean_a=float(by_case(a).mean()),
        mean_b=float(by_case(b).mean()),
        difference=float(difference.mean()),
        difference_interval=interval(difference, samples, seed),
        ratio=None if ratio is None else float(ratio.mean()),
        ratio_interval=None if ratio is None else interval(ratio, samples, seed),
        volumes=len(a),
        cases=len(difference),
        lower=int((a < b).sum()),
    )
