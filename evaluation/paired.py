"""Two methods on the same cases, with one training each or several.

Trainings and cases are crossed: each training is seen on the same cases. Both vary, so an interval over cases alone
would only speak of the very trainings that were done. With so few of either, a bootstrap's interval is too narrow (of
three trainings it is about their range); what is used is Student's, which with one training is the paired t interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from evaluation.uncertainty import LEVEL


@dataclass(frozen=True)
class Paired:
    """Two methods on the same cases.

    Attributes:
        mean_a: mean of the first.
        mean_b: mean of the second.
        difference: mean of a - b.
        difference_interval: over cases and trainings, or None for fewer than two cases.
        ratio: mean over volumes of a / b, or None where a value is not positive.
        ratio_interval: over cases and trainings, or None.
        volumes: pairs of volumes.
        cases: cases among them.
        trainings: trainings among them.
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
    trainings: int
    lower: int


def paired(
    a: Sequence[float | None],
    b: Sequence[float | None],
    cases: Sequence[str],
    trainings: Sequence[int] | None = None,
) -> Paired | None:
    """Compare two methods volume by volume, on the cases that have both in every training; None where none has.

    Args:
        a: values of the first method; None is lacking.
        b: values of the second, in the same order.
        cases: the case of each value.
        trainings: the training (its seed) of each value, by which both methods are paired; None: all of one.

    Raises:
        ValueError: other lengths, a value that is no finite number, or two of one case and training.
    """
    trainings = [0] * len(cases) if trainings is None else trainings
    values = dict(zip(zip(cases, trainings, strict=True), zip(a, b, strict=True), strict=True))
    if len(values) < len(cases):
        raise ValueError("a case comes twice in one training")
    columns = sorted(set(trainings))
    rows = [case for case in sorted(set(cases)) if all(None not in values.get((case, one), (None,)) for one in columns)]
    if not rows:
        return None
    both = np.array([[values[case, training] for training in columns] for case in rows], np.float64)
    if not np.isfinite(both).all():
        raise ValueError("a value is no finite number")
    first, second = both[..., 0], both[..., 1]  # (cases, trainings)
    ratio = first / second if (both > 0).all() else None
    return Paired(
        mean_a=float(first.mean()),
        mean_b=float(second.mean()),
        difference=float((first - second).mean()),
        difference_interval=crossed_interval(first - second),
        ratio=None if ratio is None else float(ratio.mean()),
        ratio_interval=None if ratio is None else crossed_interval(ratio),
        volumes=first.size,
        cases=len(rows),
        trainings=len(columns),
        lower=int((first < second).sum()),
    )


def crossed_interval(values: np.ndarray) -> tuple[float, float] | None:
    """Return Student's interval of the mean over cases and trainings, both of them drawn from many.

    The variance is that of two crossed random effects, its degrees of freedom Satterthwaite's (Searle, Casella and
    McCulloch 1992, "Variance components", chapter 4). Neither is taken to be less than one effect alone would give.

    Args:
        values: (cases, trainings).

    Returns:
        The interval, or None for fewer than two cases.
    """
    num_cases, num_trainings = values.shape
    if num_cases < 2:
        return None
    mean, of_cases, of_trainings = values.mean(), values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    parts = [(of_cases, num_cases - 1)]
    if num_trainings > 1:
        parts.append((of_trainings, num_trainings - 1))
        parts.append((values - of_cases - of_trainings + 2 * mean, (num_cases - 1) * (num_trainings - 1)))
    squares = [float(((part - mean) ** 2).sum() * values.size / part.size / freedom) for part, freedom in parts]
    total = max(sum(squares[:2]) - sum(squares[2:]), *squares[:2])
    if total == 0:
        return float(mean), float(mean)
    freedom = total**2 / sum(square**2 / own for square, (_, own) in zip(squares, parts, strict=True))
    freedom = max(freedom, min(own for _, own in parts))  # a difference of mean squares may ask for fewer
    half = stats.t.ppf(0.5 + LEVEL / 2, freedom) * np.sqrt(total / values.size)
    return float(mean - half), float(mean + half)
