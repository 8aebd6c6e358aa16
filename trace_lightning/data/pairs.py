"""The frame pairs of a volume (Eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class FlowOf(NamedTuple):
    """Which pairs a file of flow is of, and between what: their images, or their masks in classes."""

    skip: int
    num_classes: int | None = None

    @property
    def file(self) -> str:
        """Return the name of the file in a prepared case."""
        return f"flow_{self.skip}.npy" if self.num_classes is None else f"mask_flow_{self.num_classes}_{self.skip}.npy"

    @property
    def dtype(self) -> str:
        """Return how vectors are kept: between images half precision, between masks what a model sees bit by bit."""
        return "float16" if self.num_classes is None else "float32"


def pairs(num_slices: int, skips: Sequence[int]) -> list[tuple[int, int]]:
    """Return P = {(i, j) | j = i + k, i mod k = 0, k in skips} within a volume (Eq. 3), by skip and then by i.

    Read literally: for each skip k, i runs over the multiples of k. A long volume has sum(1/k) pairs per slice, 1.75
    for skips 1, 2, 4.

    Args:
        num_slices: N; frames count from 0 to N - 1.
        skips: the k of Eq. 3.
    """
    return [(i, i + k) for k in skips for i in range(0, num_slices - k, k)]
