"""Distances between resampled sets, cheap enough for a bootstrap over volumes.

Both classes take the features of each volume of two sets once, and then give the distance for any weights of volumes:
how often each was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.frechet import Moments, frechet_distance, kernel_diagonal, polynomial_kernel

RANK = 400  # components of the features that are resampled exactly; those of I3D all are
NEGLIGIBLE = 1e-9  # of the traces: what the components leave is rounding
JITTER = 1e-12  # of the trace, so that a singular covariance has a Cholesky factor


class FrechetResampler:
    """Frechet distances between weighted volumes.

    Means and traces are exact. The trace of the root is taken in the `RANK` leading principal components of both sets
    together; the rest, exact for weights of 1, is scaled with the root of the product of the traces that are left. With
    a fifth of the components of a slowly falling spectrum (1 / i^0.7) the spread over a bootstrap is within 3 % of
    that of distances computed anew, and their correlation 0.999.

    Args:
        a: features (n_i, d) of each volume of the first set.
        b: of the second.
        ddof: as in `frechet_distance`.
    """

    def __init__(self, a: Sequence[np.ndarray], b: Sequence[np.ndarray], ddof: int = 1):
        self.ddof = ddof
        whole = [_summed_up(np.concatenate(side)) for side in (a, b)]
        self.exact = frechet_distance(*whole, ddof=ddof)
        centre, basis = _leading_components(*whole)
        self.sides = [_Side(side, centre, basis) for side in (a, b)]
        between, total, root, rest = self._parts(np.ones(len(a)), np.ones(len(b)))
        missing = (between + total - self.exact.raw) / 2 - root
        self.tail = missing / rest if rest > NEGLIGIBLE * total else 0.0

    def __call__(self, weights_a: np.ndarray, weights_b: np.ndarray) -> float:
        """Return the distance where volume i counts weights[i] times; NaN if fewer than two samples are left."""
        between, total, root, rest = self._parts(weights_a, weights_b)
        return between + total - 2 * (root + self.tail * rest)

    def _parts(self, weights_a: np.ndarray, weights_b: np.ndarray) -> tuple[float, float, float, float]:
        """Return |difference of means|^2, the traces, the root's trace in the basis, and the scale of what is left."""
        a, b = (side.moments(w, self.ddof) for side, w in zip(self.sides, (weights_a, weights_b), strict=True))
        if a is None or b is None:
            return (np.nan,) * 4
        (mean_a, trace_a, inside_a), (mean_b, trace_b, inside_b) = a, b
        left = [max(t - np.trace(s), 0.0) for t, s in ((trace_a, inside_a), (trace_b, inside_b))]
        between = float(np.square(mean_a - mean_b).sum())
        return between, trace_a + trace_b, _root_trace(inside_a, inside_b), float(np.sqrt(left[0] * left[1]))


class _Side:
    """One set: sums over each volume, and its samples in the basis."""

    def __init__(self, volumes: Sequence[np.ndarray], centre: np.ndarray, basis: np.ndarray):
        self.counts = np.array([len(v) for v in volumes])
        self.basis = basis
        sums, squares, rows = [], [], []
        for volume in volumes:
            centred = volume - centre
            sums.append(centred.sum(axis=0))
            squares.append(np.square(centred).sum())
            rows.append(centred @ basis)
        self.sums, self.squares, self.rows = np.stack(sums), np.array(squares), np.concatenate(rows)

    def moments(self, weights: np.ndarray, ddof: int) -> tuple[np.ndarray, float, np.ndarray] | None:
        n = float(weights @ self.counts)
        if n <= 1:
            return None
        mean = weights @ self.sums / n
        trace = float(weights @ self.squares - n * mean @ mean) / (n - ddof)
        each = np.repeat(weights, self.counts)
        rows = self.rows[each > 0]
        inside_mean = mean @ self.basis
        second = (rows * each[each > 0, None]).T @ rows
        return mean, trace, (second - n * np.outer(inside_mean, inside_mean)) / (n - ddof)


def _summed_up(features: np.ndarray) -> np.ndarray | Moments:
    """Return features as they are where there are few, else their moments."""
    return features if len(features) <= features.shape[1] else Moments.of_array(features)


def _leading_components(a: np.ndarray | Moments, b: np.ndarray | Moments) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (d,) of both sets together and (d, k) directions of the largest variance, k <= `RANK`."""
    if not isinstance(a, Moments) and not isinstance(b, Moments) and len(a) + len(b) <= a.shape[1]:
        both = np.concatenate([a, b]).astype(np.float64)
        centre = both.mean(axis=0)
        both -= centre
        values, vectors = np.linalg.eigh(both @ both.T)
        kept = values > len(both) * np.finfo(np.float64).eps * max(values[-1], 0.0)
        return centre, (both.T @ (vectors[:, kept] / np.sqrt(values[kept])))[:, -RANK:]
    first, second = (side if isinstance(side, Moments) else Moments.of_array(side) for side in (a, b))
    moments = first + second
    return moments.mean, np.linalg.eigh(moments.scatter)[1][:, -RANK:]


def _root_trace(a: np.ndarray, b: np.ndarray) -> float:
    """Return tr (ab)^(1/2) of two covariances."""
    if not len(a) or not np.trace(a) > 0:
        return 0.0
    lower = np.linalg.cholesky(a + np.eye(len(a)) * (JITTER * np.trace(a)))
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(lower.T @ b @ lower), 0)).sum())


class KernelResampler:
    """Kernel distances between weighted volumes, exact, from the sums of the kernel over each pair of volumes.

    Args:
        a: features (n_i, d) of each volume of the first set.
        b: of the second.
    """

    def __init__(self, a: Sequence[np.ndarray], b: Sequence[np.ndarray]):
        self.counts = [np.array([len(v) for v in side], np.float64) for side in (a, b)]
        self.diagonals = [np.array([kernel_diagonal(v).sum() for v in side]) for side in (a, b)]
        first = _sums(a, a)
        self.within = [first, first if b is a else _sums(b, b)]
        self.across = first if b is a else _sums(a, b)

    def __call__(self, weights_a: np.ndarray, weights_b: np.ndarray) -> float:
        """Return the distance where volume i counts weights[i] times; NaN if fewer than two samples are left.

        A sample is never paired with itself nor with its own copies, so that the estimate stays one over pairs of
        different samples.
        """
        n, total = [], 0.0
        for weights, counts, diagonal, within in zip(
            (weights_a, weights_b), self.counts, self.diagonals, self.within, strict=True
        ):
            n.append(weights @ counts)
            pairs = n[-1] ** 2 - np.square(weights) @ counts
            if pairs <= 0:
                return float("nan")
            total += (weights @ within @ weights - np.square(weights) @ diagonal) / pairs
        return float(total - 2 * weights_a @ self.across @ weights_b / (n[0] * n[1]))


def _sums(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sum of the kernel over each pair of volumes, one volume of `a` against all of `b` at a time."""
    starts = np.cumsum([0, *(len(v) for v in b)])[:-1]
    everything = np.concatenate(b)
    return np.stack([np.add.reduceat(polynomial_kernel(v, everything).sum(axis=0), starts) for v in a])
