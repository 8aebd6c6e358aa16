"""Whether a method repeats what it was trained on: distances to the nearest training slice and training volume.

A small distance alone says nothing: all chests are alike. So each is read against the same distance of real volumes
that were not trained on: where more than 5 % of the generated lie nearer than the nearest 5 % of the held-out do,
something of the training set is in them. Distances are Euclidean in a named feature space, over the whole set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from evaluation.uncertainty import interval

Features = Mapping[str, np.ndarray]  # case id -> (n_i, d)
PERCENTILE = 5.0
BLOCK_BYTES = 1 << 27  # of distances in memory at once


@dataclass(frozen=True)
class Nearest:
    """The nearest of a bank to each query.

    Attributes:
        distance: (n,) float64.
        index: (n,) row of the bank.
    """

    distance: np.ndarray
    index: np.ndarray


class Neighbour(NamedTuple):
    """What of the training set lies nearest to a generated volume.

    Attributes:
        volume: of the training set, the nearest.
        distance: to it.
        percentile: of the held-out volumes, how many in 100 are as near to their nearest or nearer.
        slice: of the generated volume, the one that is nearest to any training slice; rows of its features.
        nearest_case: whose slice that is.
        nearest_slice: which, in rows of its features.
        slice_distance: between the two.
        share_slices_nearer: of the volume's slices, those nearer than the held-out slices' threshold.
    """

    volume: str
    distance: float
    percentile: float
    slice: int
    nearest_case: str
    nearest_slice: int
    slice_distance: float
    share_slices_nearer: float


@dataclass(frozen=True)
class Level:
    """Memorisation of slices, or of volumes (the mean of their slices' features).

    Attributes:
        share_nearer: of the generated, those nearer to the training set than `threshold`; 0.05 for a method that
            draws from the same distribution as the held-out.
        low: end of its 95 % interval, by the bootstrap over generated volumes.
        high: likewise.
        copies: generated at distance 0.
        threshold: 5th percentile of the held-out's distances.
        median_generated: median distance of the generated.
        median_heldout: of the held-out.
        n_generated: how many.
        n_heldout: how many.
        n_training: how many.
    """

    share_nearer: float
    low: float | None
    high: float | None
    copies: int
    threshold: float
    median_generated: float
    median_heldout: float
    n_generated: int
    n_heldout: int
    n_training: int


@dataclass(frozen=True)
class Memorisation:
    """Memorisation of a set.

    Attributes:
        slices: slice by slice.
        volumes: volume by volume.
        nearest: generated case -> its neighbour.
    """

    slices: Level
    volumes: Level
    nearest: dict[str, Neighbour]

    def to_json(self) -> dict:
        """Return a JSON-ready record."""
        return asdict(self) | {"nearest": {case: found._asdict() for case, found in self.nearest.items()}}


def memorisation(
    generated: Features, training: Features, heldout: Features, *, samples: int = 1000, seed: int = 0
) -> Memorisation:
    """Compare a generated set with what was trained on, against real volumes that were not.

    Args:
        generated: features of each generated volume's slices.
        training: of each training volume's.
        heldout: of real volumes of patients who were not trained on.
        samples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: one of the sets is empty, or a case is both trained on and held out.
    """
    if not (generated and training and heldout):
        raise ValueError("memorisation needs generated, training and held-out volumes")
    if both := sorted(training.keys() & heldout.keys()):
        raise ValueError(f"trained on and held out at once: {', '.join(both)}")
    slices, volumes = _Bank(training), _Bank(_means(training))
    made_slices, real_slices = (slices.of(side) for side in (generated, heldout))
    made_volumes, real_volumes = (volumes.of(_means(side)) for side in (generated, heldout))
    n_slices = sum(map(len, training.values()))
    of_slices = _level(made_slices, real_slices, n_slices, samples, seed)
    of_heldout = np.array([found.distance[0] for found in real_volumes.values()])

    def neighbour(of_volume: Nearest, found: Nearest) -> Neighbour:
        distance, least = float(of_volume.distance[0]), int(found.distance.argmin())
        return Neighbour(
            volumes.where(of_volume.index[0])[0],
            distance,
            100 * float((of_heldout <= distance).mean()),
            least,
            *slices.where(found.index[least]),
            float(found.distance[least]),
            float((found.distance < of_slices.threshold).mean()),
        )

    return Memorisation(
        of_slices,
        _level(made_volumes, real_volumes, len(training), samples, seed),
        {case: neighbour(made_volumes[case], found) for case, found in made_slices.items()},
    )


def nearest(queries: np.ndarray, bank: np.ndarray, block_bytes: int = BLOCK_BYTES) -> Nearest:
    """Return the nearest row of the bank to each query, in bounded memory.

    Distances are found from products, which cancel for near copies; that to the nearest is then taken again from the
    difference, so that a copy is at exactly 0.

    Args:
        queries: (n, d).
        bank: (m, d), m >= 1.
        block_bytes: of the distances held at once.
    """
    centre = bank.mean(axis=0, dtype=np.float64)
    side = max(1, int((block_bytes / 8) ** 0.5))
    best = np.full(len(queries), np.inf)
    index = np.zeros(len(queries), np.int64)
    for j in range(0, len(bank), side):
        rows = bank[j : j + side] - centre
        norms = np.square(rows).sum(axis=1)
        for i in range(0, len(queries), side):
            part = slice(i, i + side)
            squared = norms - 2 * (queries[part] - centre) @ rows.T  # less the query's own norm, the same for all rows
            at = squared.argmin(axis=1)
            found = squared[np.arange(len(at)), at]
            better = found < best[part]
            best[part] = np.where(better, found, best[part])
            index[part] = np.where(better, at + j, index[part])
    exact = [np.linalg.norm(query.astype(np.float64) - bank[i]) for query, i in zip(queries, index, strict=True)]
    return Nearest(np.array(exact), index)


class _Bank:
    """The training set's rows, and whose they are."""

    def __init__(self, training: Features):
        self.rows = np.concatenate(list(training.values()))
        self.cases = list(training)
        self.ends = np.cumsum([len(features) for features in training.values()])

    def of(self, side: Features) -> dict[str, Nearest]:
        return {case: nearest(features, self.rows) for case, features in side.items() if len(features)}

    def where(self, row: int) -> tuple[str, int]:
        """Return the case of a row, and its place in the case."""
        case = int(np.searchsorted(self.ends, row, side="right"))
        return self.cases[case], int(row - (self.ends[case - 1] if case else 0))


def _means(side: Features) -> dict[str, np.ndarray]:
    return {case: f.mean(axis=0, dtype=np.float64, keepdims=True) for case, f in side.items() if len(f)}


def _level(
    generated: Mapping[str, Nearest], heldout: Mapping[str, Nearest], training: int, samples: int, seed: int
) -> Level:
    made, real = (np.concatenate([found.distance for found in side.values()]) for side in (generated, heldout))
    threshold = float(np.percentile(real, PERCENTILE))
    bounds = interval([(found.distance < threshold).mean() for found in generated.values()], samples, seed)
    return Level(
        share_nearer=float((made < threshold).mean()),
        low=bounds[0] if bounds else None,
        high=bounds[1] if bounds else None,
        copies=int((made == 0).sum()),
        threshold=threshold,
        median_generated=float(np.median(made)),
        median_heldout=float(np.median(real)),
        n_generated=len(made),
        n_heldout=len(real),
        n_training=training,
    )
