"""Imaging quality: MUSIQ's opinion of each slice, learnt on photographs (SPAQ), / 100.

MUSIQ comes from pyiqa, the optional extra `musiq`, under the PolyForm Noncommercial licence.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms.functional import InterpolationMode, resize

from evaluation import checkpoint
from evaluation.vbench.video import Video, batches, rgb

MAX_SIDE = 512  # pixels; VBench's mode `longer`, its default
NAME = "imaging_quality"


class ImagingQuality:
    """Measures: `imaging_quality`, the mean over slices."""

    def __init__(self, opinion: Callable[[np.ndarray], torch.Tensor]):
        """Take the network: (B, H, W) uint8 -> (B,) opinions of 0..100."""
        self.opinion = opinion

    def __call__(self, video: Video) -> dict[str, float]:
        """Score one volume."""
        video.require(1, NAME)
        with torch.no_grad():
            opinions = torch.cat([self.opinion(batch).double().cpu() for batch in batches(video.frames)])
        return {NAME: opinions.mean().item() / 100}


def load(path: Path, device: str = "cpu") -> ImagingQuality:
    """Return imaging quality with MUSIQ from pyiqa's file of SPAQ weights.

    Raises:
        UserError: not that file.
    """
    from pyiqa.archs.musiq_arch import MUSIQ

    state = {key.removeprefix("module."): value for key, value in checkpoint.read(path).items()}
    network = checkpoint.fill(MUSIQ(pretrained=False), state, path, device)
    return ImagingQuality(lambda frames: network(pixels(frames, device)).reshape(len(frames)))


def pixels(frames: np.ndarray, device: str = "cpu") -> torch.Tensor:
    """Return frames as VBench gives them to MUSIQ: no longer than 512 pixels, bilinear without antialiasing, in 0..1.

    Args:
        frames: (B, H, W) uint8.
        device: where to.

    Returns:
        (B, 3, h, w) float32.
    """
    images = rgb(frames, device).float()
    height, width = images.shape[-2:]
    if max(height, width) > MAX_SIDE:
        scale = MAX_SIDE / max(height, width)
        size = [int(scale * height), int(scale * width)]
        images = resize(images, size, InterpolationMode.BILINEAR, antialias=False)
    return images / 255
