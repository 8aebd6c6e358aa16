"""The noise that a volume starts from. Drawn on the CPU from its own seed: no device, no companion matters."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class InitialNoise:
    """The starting noise of one volume, for each run of Algorithm 1 or for each slice.

    Args:
        seed: of the volume.
        shape: (F, H, W) of a sample.
        policy: of `next`: `fresh` for each run, or one that is `shared` by all of them.
    """

    def __init__(self, seed: int, shape: tuple[int, ...], policy: str):
        self.seed, self.shape = seed, shape
        self.generator = torch.Generator().manual_seed(seed)
        self.shared = self._draw() if policy == "shared" else None

    def next(self) -> Tensor:
        """Return the x_t that the next run of Algorithm 1 starts from, (F, H, W)."""
        return self._draw() if self.shared is None else self.shared

    def along_z(self, num_slices: int, correlation: float) -> Tensor:
        """Return the noise of all slices, (N, H, W), each of unit variance; the same at each call.

        An AR(1) process along z: slices that lie d apart correlate by correlation^d.
        """
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn((num_slices, *self.shape[1:]), generator=generator)  # (N, H, W)
        if correlation:
            for n in range(1, num_slices):
                noise[n] = correlate(noise[n], noise[n - 1], correlation)
        return noise

    def _draw(self) -> Tensor:
        return torch.randn(self.shape, generator=self.generator)


def correlate(own: Tensor, other: Tensor, correlation: Tensor | float) -> Tensor:
    """Mix `other` into `own`, both of unit variance and independent: unit variance, correlated with `other`."""
    spread = (1 - correlation**2) ** 0.5 if isinstance(correlation, Tensor) else math.sqrt(1 - correlation**2)
    return correlation * other + spread * own
