"""How the distance of real volumes against real volumes falls with the number of volumes.

Both groups come from one distribution, so a perfect generator of as many volumes has this distance, and no method's can
be told from perfect below it. It falls about as 1 / n once there are more samples than features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from evaluation.distances import fits, half_distances
from trace_lightning.artifacts import atomic_path


@dataclass(frozen=True)
class Point:
    """Real against real, for groups of one size.

    Attributes:
        volumes: a group.
        n: samples a group, on average.
        value: mean over splits.
        low: smallest over splits.
        high: largest over splits.
    """

    volumes: int
    n: float
    value: float
    low: float
    high: float

    def to_json(self) -> dict:
        """Return a JSON-ready record."""
        return asdict(self)


def floor_curve(
    features: Mapping[str, np.ndarray],
    *,
    kind: Literal["frechet", "kernel"] = "frechet",
    volumes: Sequence[int] | None = None,
    splits: int = 10,
    seed: int = 0,
) -> list[Point]:
    """Return the distance between disjoint random groups of real volumes, for groups of growing size.

    Args:
        features: case id -> (n_i, d).
        kind: `frechet` or `kernel`.
        volumes: sizes of the groups, at most half of all; None doubles from 1 and ends with the half.
        splits: random splits for each size.
        seed: of the splits.

    Raises:
        ValueError: two groups of some size do not fit, or a group might hold fewer than two samples.
    """
    given = [features[case] for case in sorted(features) if len(features[case])]
    half = len(given) // 2
    sizes = volumes or [size for size in sorted({half, *(2**k for k in range(half.bit_length()))}) if fits(given, size)]
    if not sizes or not all(fits(given, size) for size in sizes):
        raise ValueError(
            f"no two groups of {list(volumes or [])} volumes with two samples each in {len(given)} volumes"
        )
    mean = float(np.mean([len(v) for v in given]))
    points = []
    for size in sizes:
        found = half_distances(kind, given, size, splits, seed=seed)
        points.append(Point(size, size * mean, *(float(f(found)) for f in (np.mean, np.min, np.max))))
    return points


def plot_floor(
    curves: Mapping[str, Sequence[Point]], path: Path, *, ylabel: str, d: int, values: Mapping[str, float] | None = None
) -> None:
    """Draw the fall of floors with n, on logarithmic axes.

    Args:
        curves: label -> points.
        path: image to write, by its suffix.
        ylabel: name of the distance.
        d: number of features; n = 2d is marked.
        values: label -> a method's distance, drawn as a horizontal line.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.set(xscale="log", yscale="log", xlabel="samples a side, n", ylabel=f"{ylabel}, real against real")
    for label, points in curves.items():
        n = [point.n for point in points]
        (line,) = axes.plot(n, [point.value for point in points], marker="o", label=label)
        axes.fill_between(n, [p.low for p in points], [p.high for p in points], color=line.get_color(), alpha=0.2, lw=0)
    for label, value in (values or {}).items():
        axes.axhline(value, color="0.3", ls="--", lw=1)
        axes.text(0.01, value, label, transform=axes.get_yaxis_transform(), va="bottom", fontsize=8)
    axes.axvline(2 * d, color="0.7", lw=1)
    axes.text(
        2 * d, 0.02, f"n = 2d = {2 * d}", transform=axes.get_xaxis_transform(), rotation=90, ha="right", fontsize=8
    )
    axes.legend(frameon=False)
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:], dpi=120)
    plt.close(figure)
