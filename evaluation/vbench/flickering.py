"""Temporal flickering, over the frame and over the body."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np

from evaluation.along_z import temporal_flickering
from evaluation.vbench.video import Scorer, Video


def load() -> Scorer:
    """Return `flickering`, which has nothing to load."""
    return flickering


def flickering(video: Video) -> dict[str, float | None]:
    """Return VBench's temporal flickering, and the same over the body's pixels.

    Air outside the body is the same in all slices and lifts the published measure towards 1, by a share that depends on
    the field of view. `body_flickering` is 1 - the mean |I_t - I_{t+1}| / 255 over all pixels that are body in either
    slice; None without a body.
    """
    video.require(2, "temporal_flickering")
    measures: dict[str, float | None] = {"temporal_flickering": temporal_flickering(video.frames)}
    if video.body is not None:
        steps = zip(itertools.pairwise(video.frames), itertools.pairwise(video.body), strict=True)
        measures["body_flickering"] = closeness(inside(a.astype(np.float32) - b, p | q) for (a, b), (p, q) in steps)
    return measures


def inside(difference: np.ndarray, mask: np.ndarray) -> tuple[float, int]:
    """Return the sum of |difference| over the mask's pixels, and their number; both (H, W)."""
    return float(np.abs(difference[mask]).sum(dtype=np.float64)), int(mask.sum())


def closeness(parts: Iterable[tuple[float, int]]) -> float | None:
    """Return 1 - the mean / 255 over the pixels of all parts, as `inside` sums them up; None if there is no pixel."""
    totals, pixels = zip(*parts, strict=True)
    return 1 - sum(totals) / sum(pixels) / 255 if sum(pixels) else None
