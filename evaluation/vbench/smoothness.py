"""Motion smoothness: how close each odd slice is to what its two neighbours predict.

VBench predicts with AMT-S (`motion.py`). Linear interpolation needs no weights: another metric, under another name.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evaluation.vbench.flickering import closeness, inside
from evaluation.vbench.video import Video

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


def load() -> Smoothness:
    """Return smoothness against the mean of the two neighbours, which is not rounded."""
    return Smoothness("linear_smoothness", lambda a, b: (a.astype(np.float32) + b) / 2)
