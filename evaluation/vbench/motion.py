"""VBench's motion smoothness: `smoothness.Smoothness` with AMT-S as the interpolator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from evaluation import checkpoint
from evaluation.vbench.amt import MIN_SIDE, STRIDE, AmtS
from evaluation.vbench.smoothness import Smoothness
from evaluation.vbench.video import rgb


def load(path: Path, device: str = "cpu") -> Smoothness:
    """Return VBench's motion smoothness, with AMT-S from the file that its authors published.

    Raises:
        UserError: not that file.
    """
    network = checkpoint.fill(AmtS(), checkpoint.read(path, "state_dict"), path, device)
    return Smoothness("motion_smoothness", lambda before, after: interpolate(network, before, after, device))


def interpolate(network: AmtS, before: np.ndarray, after: np.ndarray, device: str) -> np.ndarray:
    """Return the frame midway as VBench does: edges repeated to multiples of 16, grey levels cut to whole ones.

    Args:
        network: from two (1, 3, H, W) in [0, 1] to one.
        before: (H, W) uint8.
        after: (H, W) uint8.
        device: where the network is.

    Returns:
        (3, H, W) uint8; the channels of a grey frame need not stay equal.

    Raises:
        ValueError: frames too small for the network's four levels of correlation.
    """
    height, width = before.shape
    if min(height, width) <= MIN_SIDE - STRIDE:
        raise ValueError(
            f"motion_smoothness needs slices of more than {MIN_SIDE - STRIDE} pixels, not {height}x{width}"
        )
    across, down = -width % STRIDE, -height % STRIDE
    padding = (across // 2, across - across // 2, down // 2, down - down // 2)
    pair = (rgb(frame[None], device) / 255 for frame in (before, after))
    with torch.no_grad():
        middle = network(*(functional.pad(frame, padding, mode="replicate") for frame in pair))
    middle = middle[0, :, padding[2] : padding[2] + height, padding[0] : padding[0] + width]
    return (middle * 255).clamp(0, 255).byte().cpu().numpy()
