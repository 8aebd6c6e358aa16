"""From class ids to the values that stand in the mask channels (Eq. 6: one channel a frame)."""

from __future__ import annotations

import torch
from torch import Tensor

LOWEST_SEPARATED, HIGHEST_SEPARATED = 0.6, 0.8


def class_values(num_classes: int, encoding: str) -> Tensor:
    """Return the value in [0, 1] that stands for each class, shape (num_classes,).

    `scaled` spreads the ids evenly over [0, 1]. `separated` keeps background at 0 and the others within [0.6, 0.8]: in
    a guidance map G = M + (1 - M) F no unlabelled tissue (F of muscle is about 0.35) can be taken for a class, and
    inside every class the image still shows through.
    """
    ids = torch.arange(num_classes, dtype=torch.float32)
    if encoding == "scaled":
        return ids / (num_classes - 1)
    if encoding == "separated":
        spread = (ids - 1) / max(num_classes - 2, 1)
        return torch.where(ids == 0, 0.0, LOWEST_SEPARATED + (HIGHEST_SEPARATED - LOWEST_SEPARATED) * spread)
    raise ValueError(f"no table of values for mask encoding {encoding!r}")


def num_mask_channels(num_frames: int, num_classes: int, encoding: str) -> int:
    """Return how many channels the masks of a sample take."""
    return num_frames * (num_classes if encoding == "one_hot" else 1)


def encode_masks(classes: Tensor, num_classes: int, encoding: str) -> Tensor:
    """Return mask channels.

    Args:
        classes: (B, F, H, W) integer class ids below `num_classes`.
        num_classes: incl. background.
        encoding: `scaled`, `separated` or `one_hot`.

    Returns:
        (B, F, H, W) float32 values in [0, 1]; for `one_hot` (B, F * num_classes, H, W).
    """
    if encoding == "one_hot":
        ids = torch.arange(num_classes, device=classes.device)[:, None, None]
        return (classes[:, :, None] == ids).flatten(1, 2).float()  # (B, F * K, H, W)
    return class_values(num_classes, encoding).to(classes.device)[classes.long()]  # (B, F, H, W)
