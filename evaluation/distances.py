"""Distances between the generated and the real set, with their uncertainty.

A distance of finite sets is biased upwards: two samples of one distribution have a Frechet distance above 0, the larger
the fewer they are against the number of features. So each value comes with its sample sizes, with a floor (real volumes
against real volumes, by split halves) and with an interval by the bootstrap over volumes.

The interval is value + (quantiles of the resampled values - their mean): drawing volumes twice makes sets poorer, so
resampled distances lie above the value, and only their spread is used. It is wide rather than narrow: 1.2 to 2.4 times
the spread over fresh samples of 12 to 40 volumes in a simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from evaluation.frechet import frechet_distance
from evaluation.resampling import FrechetResampler, KernelResampler
from evaluation.uncertainty import LEVEL
from evaluation.views import CLIPS, Views

Features = Mapping[str, np.ndarray]  # case id -> (n_i, d)
Resampler = Callable[[np.ndarray, np.ndarray], float]
ENOUGH = 2  # samples a feature, below which a warning is due


@dataclass(frozen=True)
class SetMetric:
    """A distance between sets.

    Attributes:
        name: key in score files.
        title: as printed.
        extractor: name in `EXTRACTORS`.
        cut: what of each volume: `slices` of the first plane, slices of all `planes` (the mean of their distances), or
            `clips`.
        kind: `frechet` or `kernel`.
        published: whether this is what the field calls by that name.
    """

    name: str
    title: str
    extractor: str
    cut: Literal["slices", "planes", "clips"]
    kind: Literal["frechet", "kernel"]
    published: bool = True

    def cuts(self, views: Views) -> tuple[str, ...]:
        """Return the names of what is cut out of each volume: planes of the protocol, or `clips`."""
        planes = views.slices.planes
        return {"slices": planes[:1], "planes": planes, "clips": (CLIPS,)}[self.cut]


SET_METRICS = {
    metric.name: metric
    for metric in (
        SetMetric("fid", "FID", "inception_2015", "slices", "frechet"),
        SetMetric("kid", "KID", "inception_2015", "slices", "kernel"),
        SetMetric("fid_2p5d", "FID 2.5-D", "inception_2015", "planes", "frechet"),
        SetMetric("fvd_i3d", "FVD I3D", "i3d_kinetics400", "clips", "frechet"),
        SetMetric("kvd_i3d", "KVD I3D", "i3d_kinetics400", "clips", "kernel"),
        SetMetric("fd_dinov2", "FD DINOv2", "dinov2_vitl14", "slices", "frechet"),
        SetMetric("kd_dinov2", "KD DINOv2", "dinov2_vitl14", "slices", "kernel"),
        SetMetric("fd_radimagenet_2p5d", "FID 2.5-D RadImageNet", "radimagenet_resnet50", "planes", "frechet"),
        SetMetric("fd_alexnet", "FD AlexNet", "alexnet", "slices", "frechet", published=False),
        SetMetric("kd_alexnet", "KD AlexNet", "alexnet", "slices", "kernel", published=False),
        SetMetric("fd_alexnet_2p5d", "FD AlexNet 2.5-D", "alexnet", "planes", "frechet", published=False),
    )
}


@dataclass(frozen=True)
class Floor:
    """Real volumes against real volumes.

    Attributes:
        value: mean over random splits in halves.
        std: over the splits, or None for a single one.
        n: samples a half, on average.
        volumes: volumes a half.
        splits: how many.
    """

    value: float
    std: float | None
    n: float
    volumes: int
    splits: int


@dataclass(frozen=True)
class Distance:
    """A distance between two sets.

    Attributes:
        value: None where there is none, with the reason; a Frechet distance is never below 0.
        raw: before it was kept at 0.
        low: end of the 95 % interval, or None for fewer than two volumes on either side or no bootstrap.
        high: likewise.
        d: features.
        n_generated: samples (slices or clips); of three planes, the fewest.
        n_reference: likewise.
        volumes_generated: volumes they come from.
        volumes_reference: likewise.
        effective_generated: independent samples that vary as much as these do, see `effective_samples`.
        effective_reference: likewise.
        floor: real against real, or None for fewer than two real volumes.
        bootstrap_samples: behind the interval.
        warnings: what a reader has to know.
        reason: why there is no value.
    """

    value: float | None = None
    raw: float | None = None
    low: float | None = None
    high: float | None = None
    d: int = 0
    n_generated: int = 0
    n_reference: int = 0
    volumes_generated: int = 0
    volumes_reference: int = 0
    effective_generated: float | None = None
    effective_reference: float | None = None
    floor: Floor | None = None
    bootstrap_samples: int = 0
    warnings: tuple[str, ...] = ()
    reason: str | None = None

    def to_json(self) -> dict:
        """Return a JSON-ready record."""
        return asdict(self) | {"warnings": list(self.warnings)}

    @classmethod
    def from_json(cls, data: dict) -> Distance:
        """Build the record that `to_json` gave."""
        floor = data["floor"] and Floor(**data["floor"])
        return cls(**data | {"floor": floor, "warnings": tuple(data["warnings"])})


def set_distance(
    kind: Literal["frechet", "kernel"],
    generated: Sequence[Features],
    reference: Sequence[Features],
    *,
    samples: int = 200,
    splits: int = 10,
    floor: Floor | None = None,
    ddof: int = 1,
    seed: int = 0,
    chunk: int | None = None,
) -> Distance:
    """Return the distance between two sets, the mean over views.

    Volumes are drawn together where both sets have the same cases, else each set for itself.

    Args:
        kind: `frechet` or `kernel`.
        generated: for each view, the features of each volume; volumes without any (too short for a clip) are left out.
        reference: the same views of the real volumes.
        samples: of the bootstrap; 0 for no interval. The end points of 200 vary by about a tenth of the interval.
        splits: of the real volumes in random halves, for the floor; 0 for none.
        floor: of the real volumes, where `real_floor` has given it already.
        ddof: of covariances.
        seed: of all that is random.
        chunk: the mean of one distance for each so many pairs of volumes, see `chunked`; it has neither interval nor
            floor. None: one distance of all.
    """
    if chunk is not None:
        return chunked(kind, generated, reference, chunk, ddof=ddof)
    made, real = _volumes(generated), _volumes(reference)
    sizes = _sizes(made, real)
    for side, n in (("generated", sizes["n_generated"]), ("real", sizes["n_reference"])):
        if n < 2:
            return Distance(**sizes, reason=f"{n} {side} samples; a distance needs two or more on either side")

    resamplers = [_resampler(kind, list(a.values()), list(b.values()), ddof) for a, b in zip(made, real, strict=True)]
    values = [_whole(resampler, len(made[0]), len(real[0])) for resampler in resamplers]
    raw = float(np.mean(values))
    value = float(np.mean(np.maximum(values, 0))) if kind == "frechet" else raw
    interval = _interval(
        value, resamplers, list(made[0]), list(real[0]), samples, seed, never_negative=kind == "frechet"
    )
    floor = floor or real_floor(kind, reference, splits=splits, ddof=ddof, seed=seed)
    return Distance(
        value=value,
        raw=raw,
        low=interval[0] if interval else None,
        high=interval[1] if interval else None,
        floor=floor,
        effective_generated=float(np.min([effective_samples(list(side.values())) for side in made])),
        effective_reference=float(np.min([effective_samples(list(side.values())) for side in real])),
        bootstrap_samples=samples if interval else 0,
        warnings=_warnings(kind, sizes, floor),
        **sizes,
    )


def chunked(
    kind: Literal["frechet", "kernel"],
    generated: Sequence[Features],
    reference: Sequence[Features],
    chunk: int,
    *,
    ddof: int = 1,
) -> Distance:
    """Return the mean distance of consecutive chunks of pairs: `chunk` volumes of either side, by name.

    For comparison with evaluations that do so; a chunk has few samples, so its distance is mostly bias. A last chunk
    with fewer than two samples on a side is left out.

    Args:
        kind: `frechet` or `kernel`.
        generated: as in `set_distance`.
        reference: as in `set_distance`.
        chunk: volumes of either side at a time.
        ddof: of covariances.
    """
    made, real = _volumes(generated), _volumes(reference)
    pairs = min(len(made[0]), len(real[0]))

    def part(side: Sequence[Features], start: int) -> list[dict[str, np.ndarray]]:
        return [dict(list(view.items())[:pairs][start : start + chunk]) for view in side]

    parts = [
        set_distance(kind, part(made, start), part(real, start), samples=0, splits=0, ddof=ddof)
        for start in range(0, pairs, chunk)
    ]
    found = [distance for distance in parts if distance.value is not None]
    sizes = _sizes(made, real)
    if not found:
        return Distance(**sizes, reason=f"no chunk of {chunk} pairs of volumes has two samples on either side")
    warning = f"mean over {len(found)} chunks of at most {chunk} pairs of volumes, as the protocol asks: mostly bias"
    value, raw = (float(np.mean([getattr(one, name) for one in found])) for name in ("value", "raw"))
    return Distance(value=value, raw=raw, warnings=(warning,), **sizes)


def real_floor(
    kind: Literal["frechet", "kernel"], reference: Sequence[Features], *, splits: int = 10, ddof: int = 1, seed: int = 0
) -> Floor | None:
    """Return the distance of real volumes against real volumes, by random halves; None where they are too few.

    Args:
        kind: `frechet` or `kernel`.
        reference: as in `set_distance`.
        splits: as in `set_distance`.
        ddof: as in `set_distance`.
        seed: as in `set_distance`.
    """
    volumes = [list(view.values()) for view in _volumes(reference)]
    half = len(volumes[0]) // 2
    if not splits or not all(fits(view, half) for view in volumes):
        return None
    n = min(np.mean([len(v) for v in view]) * half for view in volumes)
    found = np.mean([half_distances(kind, view, half, splits, ddof, seed) for view in volumes], axis=0)
    return Floor(float(found.mean()), float(found.std(ddof=1)) if splits > 1 else None, float(n), half, splits)


def effective_samples(volumes: Sequence[np.ndarray]) -> float:
    """Return how many independent samples vary as much in their mean as these do, which share volumes.

    n / (1 + (n_0 - 1) rho), with the intraclass correlation rho of a one-way analysis of variance over volumes, traces
    in place of variances (Donner 1986): between the number of volumes (slices of a volume alike) and n.

    Args:
        volumes: (n_i, d) each.
    """
    counts = np.array([len(v) for v in volumes], np.float64)
    n, groups = counts.sum(), len(counts)
    if groups < 2 or n == groups:
        return float(groups)
    means = np.stack([v.mean(axis=0, dtype=np.float64) for v in volumes])
    within = sum(np.square(v - mean).sum() for v, mean in zip(volumes, means, strict=True)) / (n - groups)
    between = counts @ np.square(means - counts @ means / n).sum(axis=1) / (groups - 1)
    size = (n - np.square(counts).sum() / n) / (groups - 1)
    spread = between + (size - 1) * within
    rho = np.clip((between - within) / spread, 0, 1) if spread > 0 else 0.0
    return float(n / (1 + (size - 1) * rho))


def half_distances(
    kind: Literal["frechet", "kernel"],
    volumes: Sequence[np.ndarray],
    half: int,
    splits: int,
    ddof: int = 1,
    seed: int = 0,
    made: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Return the distance between two disjoint random groups of `half` volumes each, for a number of splits.

    With `made` the first group is of those, so that a method is seen at the sample size of its floor, in its splits.

    Args:
        kind: `frechet` or `kernel`.
        volumes: (n_i, d) each.
        half: volumes a group, at most half of all.
        splits: how many.
        ddof: of covariances.
        seed: of the splits.
        made: generated volumes of the same cases, in the same order.
    """
    rng = np.random.default_rng(seed)
    groups = [np.split(rng.permutation(len(volumes))[: 2 * half], 2) for _ in range(splits)]
    sides = volumes if made is None else made, volumes
    if kind == "kernel":
        resampler = KernelResampler(*sides)
        chosen = np.eye(len(volumes))
        return np.array([resampler(chosen[a].sum(axis=0), chosen[b].sum(axis=0)) for a, b in groups])
    sets = ([np.concatenate([side[i] for i in group]) for side, group in zip(sides, g, strict=True)] for g in groups)
    return np.array([frechet_distance(a, b, ddof=ddof).value for a, b in sets])


def fits(volumes: Sequence[np.ndarray], half: int) -> bool:
    """Tell whether any two disjoint groups of `half` volumes have a distance: two samples or more each."""
    return 2 * half <= len(volumes) and sum(sorted(map(len, volumes))[:half]) >= 2


def _volumes(views: Sequence[Features]) -> list[dict[str, np.ndarray]]:
    """Return the views with the volumes that have samples in all of them, in the order of their names."""
    cases = sorted(set.intersection(*({case for case, found in view.items() if len(found)} for view in views)))
    return [{case: view[case] for case in cases} for view in views]


def _sizes(made: Sequence[Features], real: Sequence[Features]) -> dict[str, int]:
    shapes = [found.shape[1] for view in (*made, *real) for found in view.values()]
    return {
        "d": shapes[0] if shapes else 0,
        "n_generated": min(sum(map(len, view.values())) for view in made),
        "n_reference": min(sum(map(len, view.values())) for view in real),
        "volumes_generated": len(made[0]),
        "volumes_reference": len(real[0]),
    }


def _resampler(kind: str, a: Sequence[np.ndarray], b: Sequence[np.ndarray], ddof: int) -> Resampler:
    return FrechetResampler(a, b, ddof) if kind == "frechet" else KernelResampler(a, b)


def _whole(resampler: Resampler, volumes_a: int, volumes_b: int) -> float:
    if isinstance(resampler, FrechetResampler):
        return resampler.exact.raw
    return resampler(np.ones(volumes_a), np.ones(volumes_b))


def _interval(
    value: float,
    resamplers: Sequence[Resampler],
    made: Sequence[str],
    real: Sequence[str],
    samples: int,
    seed: int,
    never_negative: bool,
) -> tuple[float, float] | None:
    if min(len(made), len(real)) < 2 or not samples:
        return None
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(samples):
        a = rng.multinomial(len(made), np.full(len(made), 1 / len(made))).astype(np.float64)
        b = a if made == real else rng.multinomial(len(real), np.full(len(real), 1 / len(real))).astype(np.float64)
        drawn.append(np.mean([resampler(a, b) for resampler in resamplers]))
    drawn = np.array(drawn)[np.isfinite(drawn)]
    low, high = value + np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)]) - drawn.mean()
    return (max(float(low), 0.0) if never_negative else float(low)), float(high)


def _warnings(kind: str, sizes: Mapping[str, int], floor: Floor | None) -> tuple[str, ...]:
    n, d = min(sizes["n_generated"], sizes["n_reference"]), sizes["d"]
    if kind != "frechet" or n >= ENOUGH * d:
        return ()
    against = f"; real against real has {floor.value:.4g} at n = {floor.n:.0f}" if floor else ""
    return (f"n = {n} for d = {d} features: below n = {ENOUGH}d a Frechet distance is largely bias{against}",)
