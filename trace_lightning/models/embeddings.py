"""Where a frame lies in the volume, as numbers (Eq. 7)."""

from __future__ import annotations

import torch
from torch import Tensor


def position_embedding(position: Tensor, dim: int, scale: float, wavelength_exponent: float) -> Tensor:
    """Return the sinusoidal embedding of relative positions, sines and cosines interleaved (Eq. 7).

    E(r)_2m = sin(scale r / 10000^(lambda 2m / d)), E(r)_2m+1 = cos(same), for m = 0 .. d/2 - 1.

    Args:
        position: r in [0, 1], any shape.
        dim: d, even.
        scale: what r is multiplied by; 1 is the equation literally.
        wavelength_exponent: lambda.

    Returns:
        float32, shape of `position` + (dim,).
    """
    exponent = wavelength_exponent * torch.arange(0, dim, 2, device=position.device, dtype=torch.float32) / dim
    angle = scale * position.float()[..., None] / 10000.0**exponent  # (..., d/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)  # (..., d)
