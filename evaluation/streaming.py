"""torchmetrics classes of the distances between sets, for training loops and several processes.

metric = FrechetDistance(num_features=2048)
metric.update(features, real=True)      # (n, 2048), in any batches, on any process
metric.compute()
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from evaluation.frechet import Moments, frechet_distance, kernel_distance


class FrechetDistance(Metric):
    """Frechet distance between the features of two sets, from float64 moments of bounded size.

    Args:
        num_features: d.
        ddof: as in `frechet.frechet_distance`.
        reset_real_features: False keeps the real side when the metric is reset.

    `update` takes (n, d) features; `compute` gives a float64 scalar, never below 0.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0

    def __init__(self, num_features: int, *, ddof: int = 1, reset_real_features: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_features, self.ddof, self.reset_real_features = num_features, ddof, reset_real_features
        empty = torch.zeros(num_features + 1, num_features + 1, dtype=torch.float64)
        self.add_state("real", empty, dist_reduce_fx=merge_packed)
        self.add_state("generated", empty.clone(), dist_reduce_fx=merge_packed)

    def update(self, features: Tensor, real: bool) -> None:
        """Add a batch.

        Args:
            features: (n, d), any floating dtype; n may be 0.
            real: which set they belong to.
        """
        _check(features, self.num_features)
        if len(features):
            side = "real" if real else "generated"
            batch = Moments.of(features.detach().to(self.real.device, torch.float64))
            setattr(self, side, merge_packed(torch.stack([getattr(self, side), _packed(batch)])))

    def compute(self) -> Tensor:
        """Return the distance of what was seen so far.

        Raises:
            ValueError: fewer than two vectors on one side.
        """
        real, generated = (_moments(side.cpu().numpy()) for side in (self.real, self.generated))
        value = frechet_distance(generated, real, ddof=self.ddof).value
        return torch.tensor(value, dtype=torch.float64, device=self.real.device)

    def reset(self) -> None:
        """Forget both sets, or the generated one only (`reset_real_features=False`)."""
        kept = None if self.reset_real_features else self.real
        super().reset()
        if kept is not None:
            self.real = kept

    def set_dtype(self, dst_type: str | torch.dtype) -> FrechetDistance:
        """Do nothing: moments stay float64, the distance of float32 covariances may be off by several units."""
        return self


class KernelDistance(Metric):
    """KID's kernel distance between the features of two sets; keeps all features, in the dtype given.

    `update` takes (n, d) features; `compute` gives (value, std) as `frechet.kernel_distance` does, NaN where there
    are too few samples for a std.

    Args:
        num_features: d.
        blocks: as in `frechet.kernel_distance`.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(self, num_features: int, *, blocks: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_features, self.blocks = num_features, blocks
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("generated", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, real: bool) -> None:
        """Add a batch.

        Args:
            features: (n, d), any floating dtype; n may be 0.
            real: which set they belong to.
        """
        _check(features, self.num_features)
        (self.real if real else self.generated).append(features.detach())

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the distance of what was seen so far, and its spread over blocks.

        Raises:
            ValueError: fewer than two vectors on one side.
        """
        empty = torch.zeros(0, self.num_features)
        real, generated = (
            dim_zero_cat(side if len(side) else empty).cpu().double().numpy() for side in (self.real, self.generated)
        )
        found = kernel_distance(generated, real, blocks=self.blocks)
        std = float("nan") if found.std is None else found.std
        return tuple(torch.tensor(x, dtype=torch.float64, device=self.device) for x in (found.value, std))


def merge_packed(stack: Tensor) -> Tensor:
    """Merge packed moments (k, d + 1, d + 1) into one; the `dist_reduce_fx` of `FrechetDistance`.

    torchmetrics reduces each state by itself, and counts, means and scatters cannot be merged apart from each other:
    so they are one state, [[n, mean], [0, scatter]].
    """
    parts = [packed for packed in stack if packed[0, 0] > 0]
    return _packed(reduce(Moments.__add__, map(_moments, parts))) if parts else stack[0]


def _packed(moments: Moments) -> Tensor:
    packed = moments.scatter.new_zeros([len(moments.mean) + 1] * 2)
    packed[0, 0], packed[0, 1:], packed[1:, 1:] = moments.n, moments.mean, moments.scatter
    return packed


def _moments(packed: Any) -> Moments:
    return Moments(packed[0, 0], packed[0, 1:], packed[1:, 1:])


def _check(features: Tensor, num_features: int) -> None:
    if features.ndim != 2 or features.shape[1] != num_features:
        raise ValueError(f"features are (n, {num_features}), found {tuple(features.shape)}")
