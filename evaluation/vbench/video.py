"""What is scored: the slices of a volume as grey frames, with the prompt and the body that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

BATCH = 16  # frames that are in a network at once: bounds memory, whatever the volume's length


@dataclass(frozen=True)
class Video:
    """One volume, slice by slice.

    Attributes:
        frames: (T, H, W) uint8, grey levels as `evaluation.along_z.grey` makes them.
        prompt: the volume's own text, for metrics that compare with it.
        other_prompts: texts of other cases, for their control: how well does the volume fit a text that is not its own.
        body: (T, H, W) bool, the pixels that the `body_` measures are taken over.

    Raises:
        ValueError: another dtype or shape.
    """

    frames: np.ndarray
    prompt: str | None = None
    other_prompts: tuple[str, ...] = ()
    body: np.ndarray | None = None

    def __post_init__(self):
        if self.frames.ndim != 3 or self.frames.dtype != np.uint8:
            raise ValueError(f"frames are (T, H, W) uint8, not {self.frames.shape} {self.frames.dtype}")
        if self.body is not None and (self.body.shape != self.frames.shape or self.body.dtype != bool):
            raise ValueError(
                f"the body is bool of the frames' shape {self.frames.shape}, not {self.body.shape} {self.body.dtype}"
            )

    def __len__(self) -> int:
        return len(self.frames)

    def require(self, frames: int, metric: str) -> None:
        """Check that there are frames enough.

        Raises:
            ValueError: fewer than `frames`.
        """
        if len(self) < frames:
            raise ValueError(f"{metric} needs {frames} slices or more, this volume has {len(self)}")

    def require_prompt(self, metric: str) -> str:
        """Return the prompt.

        Raises:
            ValueError: there is none.
        """
        if not self.prompt:
            raise ValueError(f"{metric} compares a volume with its prompt, and this one has none")
        return self.prompt


class Scorer(Protocol):
    """A metric with its network in memory."""

    def __call__(self, video: Video) -> dict[str, float | None]:
        """Return its measures by name; None where this video cannot have one (an empty body).

        Raises:
            ValueError: too few frames, too small frames, or no prompt where one is needed.
        """


Embed = Callable[[np.ndarray], "torch.Tensor"]  # (B, H, W) uint8 -> (B, d) float32


def even_indices(frames: int, wanted: int) -> np.ndarray:
    """Return the middle of each of `wanted` equal parts, as VBench picks them; a short video repeats its last index.

    Args:
        frames: how many there are.
        wanted: how many to pick.

    Returns:
        (wanted,) int, ascending, in [0, frames).
    """
    borders = np.linspace(0, frames, min(frames, wanted) + 1).astype(int)
    middles = (borders[:-1] + borders[1:] - 1) // 2
    return np.pad(middles, (0, wanted - len(middles)), mode="edge")


def batches(frames: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the frames, `BATCH` at a time."""
    for start in range(0, len(frames), BATCH):
        yield frames[start : start + BATCH]


def embedded(frames: np.ndarray, embed: Embed) -> torch.Tensor:
    """Return each frame's feature, of unit length, on the CPU.

    Args:
        frames: (T, H, W) uint8.
        embed: the network.

    Returns:
        (T, d) float32.
    """
    import torch
    from torch.nn import functional

    with torch.no_grad():
        return torch.cat([functional.normalize(embed(batch), dim=-1).cpu() for batch in batches(frames)])


def rgb(frames: np.ndarray, device: str) -> torch.Tensor:
    """Return grey frames as three equal channels.

    Args:
        frames: (B, H, W) uint8.
        device: where to.

    Returns:
        (B, 3, H, W) uint8.
    """
    import torch

    return torch.from_numpy(np.ascontiguousarray(frames)).to(device)[:, None].expand(-1, 3, -1, -1)
