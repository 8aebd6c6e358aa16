"""Frechet and kernel distances of this project against torch-fidelity's and torchmetrics', on the same features."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        name: quantity, sizes and implementation.
        value: what it computed.
        seconds: wall time of one call.
    """

    name: str
    value: float
    seconds: float


def rows(sizes: tuple[tuple[int, int], ...] = ((100, 2048), (2500, 2048), (500, 400))) -> Iterator[Row]:
    """Yield the measurements; implementations that are not installed are left out.

    Args:
        sizes: samples a side and features, for each comparison.
    """
    for n, d in sizes:
        pair = surrogate(n, d, seed=1), 1.05 * surrogate(n, d, seed=2)
        for quantity, implementations in (("Frechet", FRECHET), ("kernel", KERNEL)):
            for name, compute in implementations.items():
                try:
                    yield _timed(f"{quantity} distance, n = {n}, d = {d}: {name}", compute, pair)
                except ModuleNotFoundError:
                    continue
        yield _timed(f"Frechet distance of a set to itself, n = {n}, d = {d}: ours", ours, (pair[0], pair[0]))


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


FRECHET = {"ours": ours, "torch-fidelity": torch_fidelity, "torchmetrics": torchmetrics}
KERNEL = {"ours": ours_kernel, "torch-fidelity": torch_fidelity_kernel}


def _timed(name: str, compute: Callable[[np.ndarray, np.ndarray], float], pair: Pair) -> Row:
    start = time.perf_counter()
    value = float(compute(*pair))
    return Row(name, value, time.perf_counter() - start)


if __name__ == "__main__":
    for row in rows():
        print(f"{row.name:75s} {row.value:14.6g} {row.seconds:8.2f} s", flush=True)
