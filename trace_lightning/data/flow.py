"""Optical flow between two slices: f[:, y, x] points from a pixel of slice i to its place in slice j (Sec. 3.2.1).

Flow is given in shares of the image size (a shift by the whole image is 1), so that resolutions compare. Training sees
the flow between images; at inference there are no images yet, and the flow between the two slices' masks stands in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from trace_lightning.anatomy.grid import Grid, resample
from trace_lightning.artifacts import read_json
from trace_lightning.config import DataConfig
from trace_lightning.data import raft
from trace_lightning.data.ct_rate import Scan, read_scan
from trace_lightning.data.preprocess import hu_to_unit, to_own_pixels
from trace_lightning.errors import UserError

SMOOTHING_PIXELS = 1.0  # sigma; the search follows gradients, and a class map's hard edges have none off the edge
CHECKED_PAIRS = 8  # of a skip, spread over the volume: the way back doubles what flow costs
Pairs = Sequence[tuple[int, int]]
PairFlow = Callable[[Pairs], Iterator[np.ndarray]]  # pairs (i, j) -> for each, in order, (2, H, W) float32 in pixels


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


def volume_mask_flow(classes: np.ndarray, num_classes: int, stride: int, skip: int = 1, threads: int = 1) -> np.ndarray:
    """Return `mask_flow` from each slice of a (D, H, W) class map to that `skip` above: (D - skip, 2, h, w).

    Beside a GPU one thread is slower than the sampler: 5.6 ms a pair of 256 x 256. OpenCV lets go of Python's lock.
    """
    depth, height, width = classes.shape
    flows = np.zeros((max(depth - skip, 0), 2, height // stride, width // stride), np.float32)

    def fill(i: int) -> None:
        flows[i] = mask_flow(classes[i], classes[i + skip], num_classes, stride)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, range(depth - skip)))
    return flows


def image_flow(scan: Scan, hu: np.ndarray, grid: Grid, data: DataConfig, root: Path, device: str = "cpu") -> PairFlow:
    """Return the function pairs (i, j) -> their flows between slices of a scan, by `data.flow_source`.

    With `data.flow_resolution: original` flow is computed between the scan's own pixels and then brought to the model's
    grid; that of the phantom is exact on any grid.

    Args:
        scan: the scan.
        hu: (D, H, W) on the model's grid, within the window.
        grid: the model's grid.
        data: names the source.
        root: of the CT-RATE tree.
        device: `auto`, `cpu` or `cuda`; where RAFT runs.

    Returns:
        A function that yields (2, H, W) float32 in pixels of `grid` for each pair.
    """
    if data.flow_source == "phantom":
        return _phantom(scan, grid, root)
    own = grid
    if data.flow_resolution == "original":
        volume = to_own_pixels(read_scan(scan, data.repair), data)
        hu, own = volume.hu, volume.grid
    slices = hu_to_unit(hu.astype(np.float32), data)
    between = _dis(slices) if data.flow_source == "dis" else lambda pairs: raft.raft_flow(slices, pairs, data, device)
    return lambda pairs: (to_pixels_of(grid, flow, own) for flow in between(pairs))


def identity(data: DataConfig) -> list:
    """Return what the flow between images depends on besides the slices."""
    keys = {"phantom": [], "dis": [data.flow_resolution], "raft": [data.flow_resolution, raft.weights_stamp(data)]}
    return [data.flow_source, data.flow_stride, *keys[data.flow_source]]


def quality(pair_flow: PairFlow, pairs: Pairs) -> dict[str, float]:
    """Return how well the flows there and back undo each other, from at most `CHECKED_PAIRS` of the pairs.

    Args:
        pair_flow: what `image_flow` returned.
        pairs: (i, j).

    Returns:
        `pairs_checked`; `error_pixels`, the mean of |f(p) + b(p + f(p))|; `consistent_percent`, the share of pixels
        that pass the test of Sundaram et al. (ECCV 2010), |f + b|^2 < 0.01 (|f|^2 + |b|^2) + 0.5.
    """
    picked = np.unique(np.linspace(0, len(pairs) - 1, min(len(pairs), CHECKED_PAIRS)).round().astype(int))
    some = [pairs[n] for n in picked]
    errors, passed = [], []
    for forward, backward in zip(pair_flow(some), pair_flow([(j, i) for i, j in some]), strict=True):
        back = warp(backward, forward)
        squares = ((forward + back) ** 2).sum(axis=0)
        errors.append(np.sqrt(squares).mean())
        passed.append((squares < 0.01 * ((forward**2).sum(axis=0) + (back**2).sum(axis=0)) + 0.5).mean())
    figures = {"error_pixels": np.mean(errors), "consistent_percent": 100 * np.mean(passed)}
    return {"pairs_checked": len(some)} | {name: round(float(value), 3) for name, value in figures.items()}


def warp(image: np.ndarray, flow_pixels: np.ndarray) -> np.ndarray:
    """Return image(p + f(p)), linear, continued by its edge: with the flow from i to j, slice j as it looks in i.

    Args:
        image: (..., H, W).
        flow_pixels: (2, H, W), pixels.
    """
    from scipy import ndimage

    height, width = image.shape[-2:]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    at = np.stack([y + flow_pixels[1], x + flow_pixels[0]])
    planes = image.reshape(-1, height, width)
    moved = [ndimage.map_coordinates(plane, at, order=1, mode="nearest") for plane in planes]
    return np.stack(moved).reshape(image.shape)


def to_pixels_of(grid: Grid, flow_pixels: np.ndarray, own: Grid) -> np.ndarray:
    """Return a flow between slices of `own` on `grid`, which has the same slices, and in its pixels.

    Args:
        grid: the grid wanted.
        flow_pixels: (2, H, W) float32, pixels of `own`.
        own: the grid of the flow.

    Returns:
        (2, H', W') float32; 0 outside the field of view of `own`.
    """
    if own.equals(grid):
        return flow_pixels
    one_own, one = (Grid((1, *of.shape[1:]), of.affine) for of in (own, grid))
    moved = [resample(part[None], one_own, one, order=1, fill=0.0)[0] for part in flow_pixels]
    scale = [own.spacing_mm[axis] / grid.spacing_mm[axis] for axis in (2, 1)]
    return np.stack(moved) * np.array(scale, np.float32)[:, None, None]


def to_shares(flow_pixels: np.ndarray, stride: int) -> np.ndarray:
    """Return (2, H, W) pixels as shares of the image size, averaged over stride x stride pixels."""
    _, height, width = flow_pixels.shape
    blocks = flow_pixels.reshape(2, height // stride, stride, width // stride, stride)
    size = np.array([width, height], np.float32)
    return blocks.mean(axis=(2, 4), dtype=np.float32) / size[:, None, None]


def _dis(slices: np.ndarray) -> PairFlow:
    grey = np.rint((slices + 1) * 127.5).astype(np.uint8)
    return lambda pairs: (dis_flow(grey[i], grey[j]) for i, j in pairs)


def _phantom(scan: Scan, grid: Grid, root: Path) -> PairFlow:
    from trace_lightning.data.phantom.motion import motion_path, pair_flow

    path = motion_path(root, scan.case_id)
    if not path.is_file():
        raise UserError(
            f"{path}: no exact motion of {scan.case_id}; only the built-in phantom writes it, "
            "for other data set data.flow_source=dis"
        )
    motion = read_json(path)
    return lambda pairs: (pair_flow(motion, grid, i, j) for i, j in pairs)
