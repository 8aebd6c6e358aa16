"""What the samplers know of a volume before it exists, and how a batch of samples is put together from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trace_lightning.models.conditioners import Conditions
from trace_lightning.models.mask_encoding import encode_masks


@dataclass(frozen=True)
class VolumeConditions:
    """Conditions of all slices of one volume, on the network's device.

    Masks are kept as class ids and encoded sample by sample: one-hot masks of a whole volume would not fit.

    Attributes:
        num_slices: N.
        device: where the network is.
        classes: (N, H, W) integer class ids, or None without DAG.
        num_classes: incl. background.
        mask_encoding: as in `encode_masks`.
        text: (T, C) token embeddings, or None without DAG.
        flow: for each distance k of a pair (N - k, 2, h, w), from slice n to n + k; empty for a row without flow.
    """

    num_slices: int
    device: torch.device
    classes: Tensor | None = None
    num_classes: int = 2
    mask_encoding: str = "scaled"
    text: Tensor | None = None
    flow: Mapping[int, Tensor] = field(default_factory=dict)

    def frames(self, start: int, num_frames: int) -> tuple[int, ...]:
        """Return the slices of the sample that begins at `start`; a pair at the last slice repeats it."""
        return tuple(min(start + offset, self.num_slices - 1) for offset in range(num_frames))

    def flow_between(self, first: int, last: int) -> Tensor:
        """Return the flow from a slice to a later one, (2, h, w); none from a slice to itself."""
        if first == last:
            return torch.zeros_like(next(iter(self.flow.values()))[:1].sum(0))
        return self.flow[last - first][first]


def batch_conditions(
    items: Sequence[tuple[VolumeConditions, tuple[int, ...]]], masks: Tensor | None = None
) -> Conditions:
    """Join samples of any volumes into one batch.

    Args:
        items: (volume, its slices) of each sample: two slices for a pair, one for a single slice.
        masks: (B, F, H, W) that replace the volumes' own masks: the guidance maps of Algorithm 1.

    Returns:
        Conditions of B = len(items) samples.
    """
    some = items[0][0]
    positions = [[i / max(volume.num_slices - 1, 1) for i in frames] for volume, frames in items]
    if masks is None and some.classes is not None:
        masks = batch_masks(items)  # (B, M, H, W)
    text = None if some.text is None else torch.stack([volume.text for volume, _ in items])  # (B, T, C)
    flow = [volume.flow_between(frames[0], frames[-1]) for volume, frames in items] if some.flow else None
    return Conditions(
        positions=torch.tensor(positions, device=some.device),  # (B, F)
        masks=masks,
        text=text,
        flow=None if flow is None else torch.stack(flow),  # (B, 2, h, w)
    )


def batch_masks(items: Sequence[tuple[VolumeConditions, tuple[int, ...]]]) -> Tensor:
    """Return the encoded masks of samples, (B, M, H, W); `items` as in `batch_conditions`."""
    some = items[0][0]
    slices = [volume.classes[i] for volume, frames in items for i in frames]
    classes = torch.stack(slices).unflatten(0, (len(items), -1))  # (B, F, H, W)
    return encode_masks(classes, some.num_classes, some.mask_encoding)
