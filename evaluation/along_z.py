"""What happens along z: flicker, steps inside and across frame pairs, correlation in the lung, jerk and drift.

Blur lowers every difference, so the texture measure stands beside them, and each has the real volume's value on the
same grid to be read against. HU are clipped to a window first: scanners and models end their range differently.
Volumes are taken a slice at a time, so that none of this needs a second volume in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np

WINDOW_HU = (-1000.0, 1000.0)
MIN_PIXELS = 16  # fewer pixels of lung or body say nothing about a slice
DETREND_MM = 10.0  # sigma of the in-plane mean that is taken off before texture is measured
Window = tuple[float, float]


def windowed(hu: np.ndarray, window_hu: Window = WINDOW_HU) -> np.ndarray:
    """Clip to a window, float32."""
    return np.clip(hu, *window_hu, dtype=np.float32)


def grey(hu: np.ndarray, window_hu: Window = WINDOW_HU) -> np.ndarray:
    """Map a window to 0..255, rounded to the nearest grey level, uint8."""
    low, high = window_hu
    levels = np.empty(hu.shape, np.uint8)
    for index, part in enumerate(hu):
        levels[index] = np.rint((windowed(part, window_hu) - low) * (255 / (high - low)))
    return levels


def temporal_flickering(frames: np.ndarray) -> float:
    """Return VBench's temporal flickering: 1 - mean |I_t - I_{t+1}| / 255.

    VBench reads grey frames replicated to three channels, which leaves the mean as it is; here no video codec lies
    between, which would smooth the frames.

    Args:
        frames: (T, H, W) uint8, T >= 2.

    Returns:
        A share in [0, 1]; 1 for identical frames.
    """
    if len(frames) < 2:
        raise ValueError("flickering needs two frames or more")
    return 1 - float(_steps(frames).mean()) / 255


def differences_hu(hu: np.ndarray, window_hu: Window = WINDOW_HU) -> dict[str, float | None]:
    """Return the mean absolute difference of neighbouring slices: all, inside pairs and across their borders.

    Pairs are slices (0, 1), (2, 3), ...; borders lie between slices 2m + 1 and 2m + 2.

    Args:
        hu: (D, H, W), D >= 2.
        window_hu: that HU are clipped to.

    Returns:
        `adjacent_difference_hu`, `within_difference_hu`, `border_difference_hu` (None below three slices) and
        `seam_ratio`, border over within (None where within is 0).
    """
    steps = _steps(windowed(plane, window_hu) for plane in hu)
    within = float(steps[0::2].mean())
    border = float(steps[1::2].mean()) if len(steps) > 1 else None
    return {
        "adjacent_difference_hu": float(steps.mean()),
        "within_difference_hu": within,
        "border_difference_hu": border,
        "seam_ratio": border / within if within and border is not None else None,
    }


def _steps(slices: Iterable[np.ndarray]) -> np.ndarray:
    """Return the mean absolute difference of each slice and the next, float64."""
    pairs = itertools.pairwise(slices)
    return np.array([np.abs(a.astype(np.float32) - b).mean(dtype=np.float64) for a, b in pairs])


def correlation(hu: np.ndarray, lung: np.ndarray, lag: int = 1, window_hu: Window = WINDOW_HU) -> float | None:
    """Return the mean Pearson correlation of the lung in slice z and in slice z + lag.

    Only pixels that are lung in both slices enter, so that outlines do not; slices with fewer than `MIN_PIXELS` of
    them, or without any contrast there, are left out. Plain mean over slices.

    Args:
        hu: (D, H, W).
        lung: (D, H, W) bool.
        lag: slices between the two.
        window_hu: that HU are clipped to.
    """
    found = []
    for z in range(len(hu) - lag):
        both = lung[z] & lung[z + lag]
        if both.sum() < MIN_PIXELS:
            continue
        a, b = (windowed(hu[slice_][both], window_hu).astype(np.float64) for slice_ in (z, z + lag))
        a, b = a - a.mean(), b - b.mean()
        scale = np.sqrt((a @ a) * (b @ b))
        if scale > 0:
            found.append(float(a @ b / scale))
    return float(np.mean(found)) if found else None


def texture_hu(
    hu: np.ndarray, lung: np.ndarray, spacing_mm: tuple[float, float, float], window_hu: Window = WINDOW_HU
) -> float | None:
    """Return the standard deviation of HU around the local mean, inside the lung.

    The lung is eroded by one pixel in plane, so that the chest wall's blur does not count; the local mean is a
    Gaussian of `DETREND_MM` over the eroded lung's pixels of the slice. Pooled over all pixels.

    Args:
        hu: (D, H, W).
        lung: (D, H, W) bool.
        spacing_mm: voxel size along (D, H, W).
        window_hu: that HU are clipped to.
    """
    from scipy import ndimage

    sigma = [DETREND_MM / spacing for spacing in spacing_mm[1:]]
    squares, pixels = 0.0, 0
    for plane, inside in zip(hu, lung, strict=True):
        inner = ndimage.binary_erosion(inside)
        if not inner.any():
            continue
        clipped = windowed(plane, window_hu)
        weight = ndimage.gaussian_filter(inner.astype(np.float32), sigma, mode="constant")
        total = ndimage.gaussian_filter(np.where(inner, clipped, 0), sigma, mode="constant")
        residual = clipped[inner] - total[inner] / weight[inner]
        squares += float(np.square(residual, dtype=np.float64).sum())
        pixels += len(residual)
    return float(np.sqrt(squares / pixels)) if pixels >= MIN_PIXELS else None


def jerk_hu(hu: np.ndarray, body: np.ndarray, window_hu: Window = WINDOW_HU) -> float | None:
    """Return the mean absolute third difference along z inside the body.

    |x(z+3) - 3 x(z+2) + 3 x(z+1) - x(z)|, over the voxels whose four slices are all body. Smooth change along z,
    whatever its slope and curvature, counts for nothing; what jumps to and fro counts eightfold.

    Args:
        hu: (D, H, W).
        body: (D, H, W) bool.
        window_hu: that HU are clipped to.

    Returns:
        HU a slice cubed, or None where no voxel has four slices of body.
    """
    total, voxels = 0.0, 0
    for z in range(len(hu) - 3):
        inside = body[z : z + 4].all(axis=0)
        a, b, c, d = windowed(hu[z : z + 4, inside], window_hu)
        total += float(np.abs(d - 3 * c + 3 * b - a).sum(dtype=np.float64))
        voxels += int(inside.sum())
    return total / voxels if voxels else None


def body_means_hu(hu: np.ndarray, body: np.ndarray, window_hu: Window = WINDOW_HU) -> np.ndarray:
    """Return the mean HU of the body's tissue in each slice, (D,) float64; NaN below `MIN_PIXELS` pixels."""
    means = np.full(len(hu), np.nan)
    for z, (plane, inside) in enumerate(zip(hu, body, strict=True)):
        if inside.sum() >= MIN_PIXELS:
            means[z] = windowed(plane[inside], window_hu).mean(dtype=np.float64)
    return means


def drift_hu(made: np.ndarray, real: np.ndarray, spacing_z_mm: float) -> dict[str, float | None]:
    """Return how the mean HU of the body runs along z, against how it runs in the real volume.

    Args:
        made: (D,) mean HU of the generated body in each slice, NaN where there is none.
        real: the same of the real volume, on the same slices.
        spacing_z_mm: from slice to slice.

    Returns:
        `z_slope_hu` and `z_slope_hu_real`: slope of the straight line through each, HU per 100 mm. Of their difference
        made - real: `drift_hu`, the size of its slope, HU per 100 mm; `drift_range_hu`, its greatest value less its
        least, HU, which sees jumps and waves too. None below two slices with both.
    """
    both = np.flatnonzero(np.isfinite(made) & np.isfinite(real))
    if len(both) < 2:
        return dict.fromkeys(("z_slope_hu", "z_slope_hu_real", "drift_hu", "drift_range_hu"))
    height = (both - both.mean()) * spacing_z_mm / 100

    def slope(values: np.ndarray) -> float:
        return float(height @ (values - values.mean()) / (height @ height))

    difference = made[both] - real[both]
    return {
        "z_slope_hu": slope(made[both]),
        "z_slope_hu_real": slope(real[both]),
        "drift_hu": abs(slope(difference)),
        "drift_range_hu": float(np.ptp(difference)),
    }
