"""Motion smoothness: how close each odd slice is to what its two neighbours predict.

VBench predicts with AMT-S. Linear interpolation needs no weights and is another metric, under another name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from evaluation import checkpoint
from evaluation.vbench.amt import MIN_SIDE, STRIDE, AmtS
from evaluation.vbench.flickering import closeness, inside
from evaluation.vbench.video import Video, rgb

FrameInterpolator = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes two frames (H, W) uint8 and returns the one midway in grey levels, (H, W) or (C, H, W), of any dtype."""


class Smoothness:
    """1 - the mean |predicted - slice| / 255 over slices 1, 3, 5, ... that have a neighbour on either side.

    Measures: `name`, and where the video has a body one that begins with `body_`, over the pixels that are body in the
    slice or in either neighbour (None if there are none).
    """

    def __init__(self, name: str, interpolate: FrameInterpolator):
        self.name, self.interpolate = name, interpolate

    def __call__(self, video: Video) -> dict[str, float | None]:
        """Score one volume."""
        video.require(3, self.name)
        whole, body = [], []
        for t in range(1, len(video) - 1, 2):
            triple = slice(t - 1, t + 2)
            error = self._error(video.frames[triple])
            whole.append((float(error.sum(dtype=np.float64)), error.size))
            if video.body is not None:
                body.append(inside(error, video.body[triple].any(axis=0)))
        measures = {self.name: closeness(whole)}
        if video.body is not None:
            measures[f"body_{self.name.removeprefix('motion_')}"] = closeness(body)
        return measures

    def _error(self, triple: np.ndarray) -> np.ndarray:
        """Return |predicted - middle| in grey levels, (H, W) float32, the mean of the channels."""
        predicted = self.interpolate(triple[0], triple[2]).astype(np.float32)
        error = np.abs(predicted - triple[1])
        return error.mean(axis=0) if error.ndim == 3 else error


def load_linear() -> Smoothness:
    """Return smoothness against the mean of the two neighbours, which is not rounded."""
    return Smoothness("linear_smoothness", lambda a, b: (a.astype(np.float32) + b) / 2)


def load_motion(path: Path, device: str = "cpu") -> Smoothness:
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
