"""The guidance map G = M + (1 - M) F(H(x^gamma)) of Algorithm 1, lines 6 and 9 (Sec. 3.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def guidance_map(masks: Tensor, frames: Tensor, gamma: float, smoothing_sigma: float) -> Tensor:
    """Join frames with their masks: anatomy stands out, the rest carries the smoothed image.

    gamma amplifies bright structures, H smooths where the mask is background, F scales each map to [0, 1].

    Args:
        masks: (B, F, H, W) mask values in [0, 1], 0 is background.
        frames: (B, F, H, W) images in [0, 1].
        gamma: exponent.
        smoothing_sigma: of the Gaussian in H, in pixels; 0 leaves the background as it is.

    Returns:
        (B, F, H, W) in [0, 1].
    """
    bright = frames.clamp(0, 1) ** gamma  # (B, F, H, W)
    selective = torch.where(masks > 0, bright, gaussian_blur(bright, smoothing_sigma))  # H
    low = selective.amin(dim=(-2, -1), keepdim=True)  # (B, F, 1, 1)
    high = selective.amax(dim=(-2, -1), keepdim=True)
    normalized = (selective - low) / (high - low).clamp_min(1e-6)  # F
    return masks + (1 - masks) * normalized


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Return images smoothed by a Gaussian of `sigma` pixels (cut at 3 sigma, edges replicated); (B, F, H, W)."""
    radius = math.ceil(3 * sigma)
    if radius == 0:
        return images
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    flat = images.flatten(0, 1)[:, None]  # (B F, 1, H, W)
    flat = functional.pad(flat, (radius,) * 4, mode="replicate")
    flat = functional.conv2d(flat, kernel[None, None, None, :])
    flat = functional.conv2d(flat, kernel[None, None, :, None])
    return flat[:, 0].unflatten(0, images.shape[:2])
