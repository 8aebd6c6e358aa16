"""Frechet and kernel distances of this project against torch-fidelity's and torchmetrics', on the same features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.row import Row, timed

Compute = Callable[[np.ndarray, np.ndarray], float]
SIZES = ((100, 2048), (2500, 2048), (500, 400))  # samples a side, features


def rows(others: Path | None = None, sizes: tuple[tuple[int, int], ...] = SIZES) -> Iterator[Row]:
    """Yield the measurements, and the distance of a set to itself.

    Args:
        others: not needed, the packages that are compared with lie beside ours.
        sizes: samples a side and features, for each comparison.
    """
    for n, d in sizes:
        pair = surrogate(n, d, seed=1), 1.05 * surrogate(n, d, seed=2)
        for quantity, mine, foreign in (("Frechet", ours, FRECHET), ("kernel", ours_kernel, KERNEL)):
            value, seconds = timed(lambda mine=mine, pair=pair: mine(*pair))
            for tool, compute in foreign.items():
                yield _row(f"{quantity} distance, n = {n}, d = {d}", tool, compute, pair, value, seconds)
        itself, seconds = timed(lambda pair=pair: ours(pair[0], pair[0]))
        yield Row(f"Frechet distance to itself, n = {n}, d = {d}", "by definition", 0.0, itself, None, seconds, 1e-3)


def _row(quantity: str, tool: str, compute: Compute, pair: tuple, value: float, seconds: float) -> Row:
    try:
        theirs, their_seconds = timed(lambda: float(compute(*pair)))
    except ModuleNotFoundError as error:
        return Row(quantity, tool, None, value, None, seconds, note=f"not installed: {error.name}")
    return Row(quantity, f"{tool} {version(tool)}", theirs, value, their_seconds, seconds, 1e-3 * abs(value))


def surrogate(n: int, d: int, seed: int) -> np.ndarray:
    """Return (n, d) float32 non-negative features with a falling spectrum, as a network's are."""
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))[0]
    scales = 10 * np.arange(1, d + 1) ** -0.7
    return np.abs(np.random.default_rng(seed).normal(size=(n, d)) * scales @ basis).astype(np.float32)


def ours(a: np.ndarray, b: np.ndarray) -> float:
    """Return `evaluation.frechet.frechet_distance`."""
    from evaluation.frechet import frechet_distance

    return frechet_distance(a, b).raw


def torch_fidelity(a: np.ndarray, b: np.ndarray) -> float:
    """Return torch-fidelity's, from its statistics of the features."""
    import torch
    from torch_fidelity import metric_fid

    statistics = [metric_fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    return metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def torchmetrics(a: np.ndarray, b: np.ndarray) -> float:
    """Return torchmetrics', fed with features in place of images."""
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Given(torch.nn.Module):
        num_features = a.shape[1]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    metric = FrechetInceptionDistance(feature=Given(), normalize=False, input_img_size=(1, 1, 1)).set_dtype(
        torch.float64
    )
    metric.update(torch.from_numpy(b), real=True)
    metric.update(torch.from_numpy(a), real=False)
    return float(metric.compute())


def ours_kernel(a: np.ndarray, b: np.ndarray) -> float:
    """Return `evaluation.frechet.kernel_distance`."""
    from evaluation.frechet import kernel_distance

    return kernel_distance(a, b).value


def torch_fidelity_kernel(a: np.ndarray, b: np.ndarray) -> float:
    """Return torch-fidelity's over one subset of everything."""
    import torch
    from torch_fidelity import metric_kid

    pair = (torch.from_numpy(x).double() for x in (a, b))
    found = metric_kid.kid_features_to_metric(*pair, kid_subsets=1, kid_subset_size=len(a), verbose=False)
    return found["kernel_inception_distance_mean"]


FRECHET = {"torch-fidelity": torch_fidelity, "torchmetrics": torchmetrics}
KERNEL = {"torch-fidelity": torch_fidelity_kernel}
