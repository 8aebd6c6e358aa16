"""What happens from slice to slice: flicker, steps inside and across frame pairs, correlation and texture in the lung.

Blur lowers every difference, so the texture measure stands beside them, and each has the real volume's value on the
same grid to be read against. HU are clipped to `WINDOW_HU` first: scanners and models end their range differently.
"""

from __future__ import annotations

import itertools

import numpy as np

WINDOW_HU = (-1000.0, 1000.0)
MIN_PIXELS = 16  # fewer lung pixels say nothing about a slice
DETREND_MM = 10.0  # sigma of the in-plane mean that is taken off before texture is measured


def windowed(hu: np.ndarray) -> np.ndarray:
    """Clip to `WINDOW_HU`, float32."""
    return np.clip(hu, *WINDOW_HU, dtype=np.float32)


def grey(hu: np.ndarray) -> np.ndarray:
    """Map `WINDOW_HU` to 0..255, rounded to the nearest grey level, uint8."""
    low, high = WINDOW_HU
    return np.rint((windowed(hu) - low) * (255 / (high - low))).astype(np.uint8)


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


def differences_hu(hu: np.ndarray) -> dict[str, float | None]:
    """Return the mean absolute difference of neighbouring slices: all, inside pairs and across their borders.

    Pairs are slices (0, 1), (2, 3), ...; borders lie between slices 2m + 1 and 2m + 2.

    Args:
        hu: (D, H, W), D >= 2.

    Returns:
        `adjacent_difference_hu`, `within_difference_hu`, `border_difference_hu` (None below three slices) and
        `seam_ratio`, border over within (None where within is 0).
    """
    steps = _steps(windowed(hu))
    within = float(steps[0::2].mean())
    border = float(steps[1::2].mean()) if len(steps) > 1 else None
    return {
        "adjacent_difference_hu": float(steps.mean()),
        "within_difference_hu": within,
        "border_difference_hu": border,
        "seam_ratio": border / within if within and border is not None else None,
    }


def _steps(slices: np.ndarray) -> np.ndarray:
    """Return the mean absolute difference of each slice and the next, float64, one slice in memory at a time."""
    pairs = itertools.pairwise(slices)
    return np.array([np.abs(a.astype(np.float32) - b).mean(dtype=np.float64) for a, b in pairs])


def correlation_z1(hu: np.ndarray, lung: np.ndarray) -> float | None:
    """Return the mean Pearson correlation of the lung in slice z and in slice z + 1.

    Only pixels that are lung in both slices enter, so that outlines do not; slices with fewer than `MIN_PIXELS` of
    them, or without any contrast there, are left out. Plain mean over slices.

    Args:
        hu: (D, H, W).
        lung: (D, H, W) bool.
    """
    hu = windowed(hu)
    found = []
    for z in range(len(hu) - 1):
        both = lung[z] & lung[z + 1]
        if both.sum() < MIN_PIXELS:
            continue
        a, b = hu[z][both].astype(np.float64), hu[z + 1][both].astype(np.float64)
        a, b = a - a.mean(), b - b.mean()
        scale = np.sqrt((a @ a) * (b @ b))
        if scale > 0:
            found.append(float(a @ b / scale))
    return float(np.mean(found)) if found else None


def texture_hu(hu: np.ndarray, lung: np.ndarray, spacing_mm: tuple[float, float, float]) -> float | None:
    """Return the standard deviation of HU around the local mean, inside the lung.

    The lung is eroded by one pixel in plane, so that the chest wall's blur does not count; the local mean is a
    Gaussian of `DETREND_MM` over the eroded lung's pixels of the slice. Pooled over all pixels.

    Args:
        hu: (D, H, W).
        lung: (D, H, W) bool.
        spacing_mm: voxel size along (D, H, W).
    """
    from scipy import ndimage

    inner = ndimage.binary_erosion(lung, np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], bool))
    if inner.sum() < MIN_PIXELS:
        return None
    sigma = [0, DETREND_MM / spacing_mm[1], DETREND_MM / spacing_mm[2]]
    weight = ndimage.gaussian_filter(inner.astype(np.float32), sigma, mode="constant")
    total = ndimage.gaussian_filter(np.where(inner, windowed(hu), 0), sigma, mode="constant")
    residual = windowed(hu)[inner] - total[inner] / weight[inner]
    return float(np.sqrt(np.mean(np.square(residual, dtype=np.float64))))
