"""The continuous-time diffusion of the super-resolution stage, in log signal-to-noise ratios.

x_t = alpha x_0 + sigma noise with alpha^2 = sigmoid(log SNR), sigma^2 = sigmoid(-log SNR); t runs from 0 (data) to 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cosine_log_snr(t: Tensor) -> Tensor:
    """Return the log SNR of the cosine schedule at (B,) times."""
    offset = 0.008
    cosine = torch.cos((t + offset) / (1 + offset) * (math.pi / 2))
    return -torch.log((cosine**-2 - 1).clamp(min=1e-5))


def linear_log_snr(t: Tensor) -> Tensor:
    """Return the log SNR of the schedule that noises the coarse image, at (B,) times."""
    return -torch.log(torch.expm1(1e-4 + 10 * t**2))


def alpha_sigma(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma, (B, 1, 1, 1) each, of (B,) log SNRs."""
    log_snr = log_snr[:, None, None, None]
    return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()


def add_noise(data: Tensor, noise: Tensor, log_snr: Tensor) -> Tensor:
    """Return x_t of data (B, 1, h, w)."""
    alpha, sigma = alpha_sigma(log_snr)
    return alpha * data + sigma * noise


def velocity(data: Tensor, noise: Tensor, log_snr: Tensor) -> Tensor:
    """Return the target alpha noise - sigma x_0."""
    alpha, sigma = alpha_sigma(log_snr)
    return alpha * noise - sigma * data


def data_of_velocity(x_t: Tensor, prediction: Tensor, log_snr: Tensor) -> Tensor:
    """Return x_0 of a velocity; the inverse of `velocity` and `add_noise`."""
    alpha, sigma = alpha_sigma(log_snr)
    return alpha * x_t - sigma * prediction


def threshold_dynamically(data: Tensor, quantile: float) -> Tensor:
    """Return x_0 clipped at the quantile of its magnitudes, at least 1, and divided by it (Imagen)."""
    bound = data.flatten(1).abs().quantile(quantile, dim=1).clamp(min=1)[:, None, None, None]
    return data.clamp(-bound, bound) / bound


def posterior(data: Tensor, x_t: Tensor, log_snr: Tensor, next_log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of x_s given x_t and x_0, for s < t."""
    alpha, _ = alpha_sigma(log_snr)
    next_alpha, next_sigma = alpha_sigma(next_log_snr)
    kept = -torch.expm1(log_snr - next_log_snr)[:, None, None, None]
    mean = next_alpha * (x_t * (1 - kept) / alpha + kept * data)
    return mean, next_sigma * kept.sqrt()
