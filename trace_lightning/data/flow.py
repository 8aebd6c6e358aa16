"""Optical flow between two slices: f[:, y, x] points from a pixel of slice i to its place in slice j (Sec. 3.2.1).

Flow is given in shares of the image size (a shift by the whole image is 1), so that resolutions compare. Training sees
the flow between images; at inference there are no images yet, and the flow between the two slices' masks stands in.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from trace_lightning.anatomy.grid import Grid
from trace_lightning.artifacts import read_json
from trace_lightning.config import DataConfig
from trace_lightning.data.ct_rate import Scan
from trace_lightning.data.preprocess import hu_to_unit
from trace_lightning.errors import UserError

SMOOTHING_PIXELS = 1.0  # sigma; the search follows gradients, and a class map's hard edges have none off the edge
PairFlow = Callable[[int, int], np.ndarray]  # (i, j) -> (2, H, W) float32, pixels


def dis_flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the flow from `a` to `b` by dense inverse search (Kroeger et al., ECCV 2016; OpenCV's medium preset).

    Its finest scale is half the resolution, enough for a flow that is kept at 1/4. In 64 x 64 pixels it finds motion
    below a pixel where it is, but too small: about 2/3 of what it finds in 256 x 256.

    Args:
        a: (H, W) uint8, at least 12 pixels along an axis.
        b: like `a`.

    Returns:
        (2, H, W) float32, pixels along W and along H: `a(p)` is found at `b(p + f(p))`.
    """
    import cv2

    cv2.setNumThreads(0)  # the loaders' processes are forked: OpenCV's threads would not survive that
    smooth_a, smooth_b = (cv2.GaussianBlur(np.ascontiguousarray(image), (0, 0), SMOOTHING_PIXELS) for image in (a, b))
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.ascontiguousarray(np.moveaxis(dis.calc(smooth_a, smooth_b, None), -1, 0))


def mask_flow(classes_i: np.ndarray, classes_j: np.ndarray, num_classes: int, stride: int = 1) -> np.ndarray:
    """Return the flow between two class maps, drawn as grey images with evenly spaced levels.

    Args:
        classes_i: (H, W) class ids 0..num_classes-1 of slice i.
        classes_j: those of slice j.
        num_classes: incl. background.
        stride: the flow is averaged over stride x stride pixels.

    Returns:
        (2, H/stride, W/stride) float32, shares of the image size.
    """
    levels = np.rint(np.linspace(0, 255, num_classes)).astype(np.uint8)
    return to_shares(dis_flow(levels[classes_i], levels[classes_j]), stride)


def volume_mask_flow(classes: np.ndarray, num_classes: int, stride: int) -> np.ndarray:
    """Return `mask_flow` from each slice of a (D, H, W) class map to the next: (D - 1, 2, H/stride, W/stride)."""
    depth, height, width = classes.shape
    flows = np.zeros((depth - 1, 2, height // stride, width // stride), np.float32)
    for i in range(depth - 1):
        flows[i] = mask_flow(classes[i], classes[i + 1], num_classes, stride)
    return flows


def image_flow(scan: Scan, hu: np.ndarray, grid: Grid, data: DataConfig, root: Path) -> PairFlow:
    """Return the function (i, j) -> flow between two slices of a scan, by `data.flow_source`.

    Args:
        scan: the scan.
        hu: (D, H, W) on the model's grid, within the window.
        grid: the model's grid.
        data: names the source.
        root: of the CT-RATE tree.

    Returns:
        A function that gives (2, H, W) float32 in pixels of `grid`.
    """
    return SOURCES[data.flow_source](scan, hu, grid, data, root)


def to_shares(flow_pixels: np.ndarray, stride: int) -> np.ndarray:
    """Return (2, H, W) pixels as shares of the image size, averaged over stride x stride pixels."""
    _, height, width = flow_pixels.shape
    blocks = flow_pixels.reshape(2, height // stride, stride, width // stride, stride)
    size = np.array([width, height], np.float32)
    return blocks.mean(axis=(2, 4), dtype=np.float32) / size[:, None, None]


def _dis(scan: Scan, hu: np.ndarray, grid: Grid, data: DataConfig, root: Path) -> PairFlow:
    grey = np.rint((hu_to_unit(hu.astype(np.float32), data) + 1) * 127.5).astype(np.uint8)
    return lambda i, j: dis_flow(grey[i], grey[j])


def _phantom(scan: Scan, hu: np.ndarray, grid: Grid, data: DataConfig, root: Path) -> PairFlow:
    from trace_lightning.data.phantom.motion import motion_path, pair_flow

    path = motion_path(root, scan.case_id)
    if not path.is_file():
        raise UserError(
            f"{path}: no exact motion of {scan.case_id}; only the built-in phantom writes it, "
            "for other data set data.flow_source=dis"
        )
    motion = read_json(path)
    return lambda i, j: pair_flow(motion, grid, i, j)


SOURCES: dict[str, Callable[[Scan, np.ndarray, Grid, DataConfig, Path], PairFlow]] = {"dis": _dis, "phantom": _phantom}
