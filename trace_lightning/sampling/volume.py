"""What the samplers know of a volume before it exists, and how a batch of samples is put together from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trace_lightning.models.conditioners import Conditions


@dataclass(frozen=True)
class VolumeConditions:
    """Conditions of all slices of one volume, on the network's device.

    Attributes:
        num_slices: N.
        device: where the network is.
        masks: (N, C, H, W) encoded masks (C = 1, or the classes for one-hot), or None without DAG.
        text: (T, C) token embeddings, or None without DAG.
        flow: (N - 1, 2, h, w) from slice n to n + 1, or None.
    """

    num_slices: int
    device: torch.device
    masks: Tensor | None = None
    text: Tensor | None = None
    flow: Tensor | None = None

    def frames(self, start: int, num_frames: int) -> list[int]:
        """Return the slices of the sample that begins at `start`; a pair at the last slice repeats it."""
        return [min(start + offset, self.num_slices - 1) for offset in range(num_frames)]


def batch_conditions(
    items: Sequence[tuple[VolumeConditions, int]], num_frames: int, masks: Tensor | None = None
) -> Conditions:
    """Join samples of any volumes into one batch.

    Args:
        items: (volume, first slice) of each sample.
        num_frames: 2 for pairs, 1 for slices.
        masks: (B, F, H, W) that replace the volumes' own masks: the guidance maps of Algorithm 1.

    Returns:
        Conditions of B = len(items) samples.
    """
    volumes = [volume for volume, _ in items]
    frames = [volume.frames(start, num_frames) for volume, start in items]
    positions = [[i / max(v.num_slices - 1, 1) for i in own] for v, own in zip(volumes, frames, strict=True)]
    if masks is None and volumes[0].masks is not None:
        own_masks = [v.masks[own].flatten(0, 1) for v, own in zip(volumes, frames, strict=True)]
        masks = torch.stack(own_masks)  # (B, F C, H, W)
    text = None if volumes[0].text is None else torch.stack([v.text for v in volumes])  # (B, T, C)
    flow = None if volumes[0].flow is None else torch.stack([_flow_at(v, start) for v, start in items])  # (B, 2, h, w)
    positions = torch.tensor(positions, device=volumes[0].device)  # (B, F)
    return Conditions(positions=positions, masks=masks, text=text, flow=flow)


def _flow_at(volume: VolumeConditions, start: int) -> Tensor:
    """Flow from `start` to the next slice; none from the last slice to itself."""
    return volume.flow[start] if start < len(volume.flow) else torch.zeros_like(volume.flow[:1].sum(0))
