"""Distances between two sets of feature vectors: Frechet (FID, FVD) and kernel (KID), in float64.

The Frechet distance of two Gaussians is |m_a - m_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2). With any factors
A'A = S_a and B'B = S_b the last trace is the nuclear norm of A B'. No product of covariances is formed and no square
root of a null eigenvalue is taken, which is what makes other implementations print a negative distance where there
are fewer samples than features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

KERNEL_DEGREE = 3
ROWS = 4096  # samples whose kernel values or products are in memory at once


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of feature vectors; sums of these are exact, so sets may be split in any way.

    Centred throughout (Chan, Golub and LeVeque 1979), so that a common offset costs no digits. Arrays are float64 of
    NumPy or of torch.

    Attributes:
        n: vectors.
        mean: (d,).
        scatter: (d, d), sum of outer products about the mean.
    """

    n: Any
    mean: Any
    scatter: Any

    @classmethod
    def of(cls, features: Any) -> Moments:
        """Return the moments of (n, d) float64 vectors, n >= 1."""
        mean = features.mean(0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    @classmethod
    def of_array(cls, features: np.ndarray) -> Moments:
        """Return the moments of (n, d) vectors of any dtype, `ROWS` of them in float64 at a time."""
        blocks = (cls.of(features[i : i + ROWS].astype(np.float64)) for i in range(0, len(features), ROWS))
        total = next(blocks)
        for block in blocks:
            total = total + block
        return total

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both sets together."""
        n = self.n + other.n
        delta = other.mean - self.mean
        share = other.n / n
        between = delta[:, None] * delta[None, :] * (self.n * share)
        return Moments(n, self.mean + delta * share, self.scatter + other.scatter + between)

    def covariance(self, ddof: int = 1) -> np.ndarray:
        """Return the (d, d) covariance; `ddof` 0 divides by n, 1 by n - 1."""
        return self.scatter / (self.n - ddof)


@dataclass(frozen=True)
class Frechet:
    """A Frechet distance.

    Attributes:
        value: never below 0.
        raw: as computed; what lies below 0 is rounding.
    """

    value: float
    raw: float


def frechet_distance(a: np.ndarray | Moments, b: np.ndarray | Moments, *, ddof: int = 1) -> Frechet:
    """Return the Frechet distance between two sets of feature vectors.

    Args:
        a: (n, d) vectors or their moments.
        b: (m, d) vectors or their moments.
        ddof: 1 divides covariances by n - 1 (pytorch-fid, torch-fidelity), 0 by n (StyleGAN).

    Raises:
        ValueError: fewer than two vectors, another number of features, or values that are not finite.
    """
    mean_a, factor_a = _mean_and_factor(a, ddof)
    mean_b, factor_b = _mean_and_factor(b, ddof)
    if mean_a.shape != mean_b.shape:
        raise ValueError(f"vectors of {len(mean_a)} and of {len(mean_b)} features have no distance")
    traces = np.square(factor_a).sum() + np.square(factor_b).sum()
    raw = float(np.square(mean_a - mean_b).sum() + traces - 2 * nuclear_norm(factor_a @ factor_b.T))
    return Frechet(max(raw, 0.0), raw)


def nuclear_norm(matrix: np.ndarray) -> float:
    """Return the sum of the singular values."""
    return float(np.linalg.svd(matrix, compute_uv=False).sum())


def covariance_factor(covariance: np.ndarray) -> np.ndarray:
    """Return (k, d) A with A'A = covariance: its Cholesky factor, or one of its numerical rank where it is singular."""
    with contextlib.suppress(np.linalg.LinAlgError):
        return np.linalg.cholesky(covariance).T
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(values.dtype).eps * max(values[-1], 0.0)
    return (vectors[:, kept] * np.sqrt(values[kept])).T


def _mean_and_factor(given: np.ndarray | Moments, ddof: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (d,) and a factor (k, d) of the covariance, k <= d."""
    if isinstance(given, Moments):
        moments = given
    else:
        _check(given)
        if len(given) <= given.shape[1]:
            features = given.astype(np.float64)
            mean = features.mean(axis=0)
            return mean, (features - mean) / np.sqrt(len(features) - ddof)
        moments = Moments.of_array(given)
    if moments.n < 2:
        raise ValueError("a Frechet distance needs two vectors or more on either side")
    return moments.mean, covariance_factor(moments.covariance(ddof))


def _check(features: np.ndarray) -> None:
    if features.ndim != 2:
        raise ValueError(f"features are (n, d), found an array of shape {features.shape}")
    if len(features) < 2:
        raise ValueError("a distance needs two vectors or more on either side")
    if not np.isfinite(features).all():
        raise ValueError("features hold NaN or infinite values")


@dataclass(frozen=True)
class Kernel:
    """A kernel distance.

    Attributes:
        value: unbiased estimate of MMD^2 over all samples; may be below 0 by right.
        std: spread of the same estimate over disjoint blocks of the samples, or None where blocks would be too small.
        block: samples a block, on the smaller side.
    """

    value: float
    std: float | None
    block: int


def kernel_distance(a: np.ndarray, b: np.ndarray, *, blocks: int = 10, seed: int = 0) -> Kernel:
    """Return the squared maximum mean discrepancy under the kernel of KID, (x.y / d + 1)^3.

    KID (Binkowski et al. 2018, arXiv 1801.01401) is the mean of this unbiased estimate over random subsets; here all
    pairs of samples enter, so that nothing is drawn: the same quantity with less noise.

    Args:
        a: (n, d), n >= 2.
        b: (m, d), m >= 2.
        blocks: disjoint blocks over which `std` is taken.
        seed: of the blocks.

    Raises:
        ValueError: fewer than two vectors, another number of features, or values that are not finite.
    """
    _check(a)
    _check(b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"vectors of {a.shape[1]} and of {b.shape[1]} features have no distance")
    rng = np.random.default_rng(seed)
    block = min(len(a), len(b)) // blocks
    std = None
    if block >= 2:
        parts = zip(*(np.array_split(rng.permutation(len(x)), blocks) for x in (a, b)), strict=True)
        std = float(np.std([_mmd2(a[i], b[j]) for i, j in parts], ddof=1))
    return Kernel(_mmd2(a, b), std, block)


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return KID's kernel (n, m) between (n, d) and (m, d), float64."""
    return (x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1) ** KERNEL_DEGREE


def kernel_diagonal(x: np.ndarray) -> np.ndarray:
    """Return the kernel (n,) of each vector with itself."""
    return (np.square(x, dtype=np.float64).sum(axis=1) / x.shape[1] + 1) ** KERNEL_DEGREE


def _mmd2(a: np.ndarray, b: np.ndarray) -> float:
    n, m = len(a), len(b)
    within_a = _kernel_sum(a, a) - kernel_diagonal(a).sum()
    within_b = _kernel_sum(b, b) - kernel_diagonal(b).sum()
    return float(within_a / (n * (n - 1)) + within_b / (m * (m - 1)) - 2 * _kernel_sum(a, b) / (n * m))


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    return float(sum(polynomial_kernel(u, v).sum() for u in _rows(x) for v in _rows(y)))


def _rows(x: np.ndarray) -> Iterator[np.ndarray]:
    return (x[i : i + ROWS] for i in range(0, len(x), ROWS))
