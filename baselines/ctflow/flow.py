"""Flow matching: the straight path from data to noise, its velocity, and solvers of the ODE back. Pure functions."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from baselines.ctflow.config import FlowConfig

Velocity = Callable[[Tensor, float], Tensor]  # (z_t, t) -> dz/dt


def path(data: Tensor, noise: Tensor, t: Tensor, flow: FlowConfig) -> Tensor:
    """Return z_t = (1 - t) z_0 + (s + (1 - s) t) z_1, s = `sigma_min`; z_0 is data and z_1 noise.

    Args:
        data: z_0 (B, ...).
        noise: z_1, of the same shape.
        t: (B,) in [0, 1].
        flow: of which `sigma_min` is read.
    """
    t = t.view(-1, *[1] * (data.ndim - 1))
    return (1 - t) * data + (flow.sigma_min + (1 - flow.sigma_min) * t) * noise


def velocity(data: Tensor, noise: Tensor, flow: FlowConfig) -> Tensor:
    """Return dz_t/dt = (1 - s) z_1 - z_0, the same at all t."""
    return (1 - flow.sigma_min) * noise - data


def target(data: Tensor, noise: Tensor, flow: FlowConfig) -> Tensor:
    """Return what the network is trained to say, as `prediction` tells: the velocity, or the data."""
    return data if flow.prediction == "data" else velocity(data, noise, flow)


def as_velocity(predicted: Tensor, z: Tensor, t: float, flow: FlowConfig) -> Tensor:
    """Return the velocity at (z, t), t > 0, of what the network said there; the inverse of `target`."""
    if flow.prediction == "velocity":
        return predicted
    noise = (z - (1 - t) * predicted) / (flow.sigma_min + (1 - flow.sigma_min) * t)
    return velocity(predicted, noise, flow)


def shifted(t, flow: FlowConfig):
    """Return times (numbers or tensors in [0, 1]) moved towards noise, as large images need (Esser et al. 2024)."""
    return flow.shift * t / (1 + (flow.shift - 1) * t)


def training_noise(like: Tensor, flow: FlowConfig, generator: torch.Generator) -> Tensor:
    """Return z_1 for training: white noise plus `noise_offset` times a constant for each sample and channel.

    Args:
        like: (B, c, T, H, W).
        flow: of which `noise_offset` is read.
        generator: on the device of `like`.
    """
    noise = torch.randn(like.shape, generator=generator, device=like.device)
    constant = torch.randn(*like.shape[:2], *[1] * (like.ndim - 2), generator=generator, device=like.device)
    return noise + flow.noise_offset * constant


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Return the velocity of classifier-free guidance; scale 1 is the conditional one."""
    return unconditional + scale * (conditional - unconditional)


# Explicit Runge-Kutta methods: rows of (place in the step, weights of the slopes so far); the last row ends the step.
SOLVERS: dict[str, tuple[tuple[float, tuple[float, ...]], ...]] = {
    "euler": ((0, ()), (1, (1,))),
    "midpoint": ((0, ()), (1 / 2, (1 / 2,)), (1, (0, 1))),
    "heun": ((0, ()), (1, (1,)), (1, (1 / 2, 1 / 2))),
    "rk4": (
        (0, ()),
        (1 / 2, (1 / 2,)),
        (1 / 2, (0, 1 / 2)),
        (1, (0, 0, 1)),
        (1, (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
    ),
}


def solve(field: Velocity, noise: Tensor, solver: str, evaluations: int, flow: FlowConfig) -> Tensor:
    """Follow dz/dt = field(z, t) from t = 1 (noise) to t = 0 (data) in steps that are equal but for `shift`.

    Args:
        field: the velocity at (z, t).
        noise: z at t = 1.
        solver: a key of `SOLVERS`.
        evaluations: of the field, a multiple of what a step of the solver takes.
        flow: of which `shift` is read.

    Returns:
        z at t = 0.
    """
    *stages, (_, finish) = SOLVERS[solver]
    num_steps = evaluations // len(stages)
    z, times = noise, [shifted(1 - n / num_steps, flow) for n in range(num_steps + 1)]
    for t, following in pairwise(times):
        slopes: list[Tensor] = []
        step = following - t
        for place, weights in stages:
            slopes.append(field(_moved(z, step, weights, slopes), t + place * step))
        z = _moved(z, step, finish, slopes)
    return z


def _moved(z: Tensor, step: float, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            z = z + step * weight * slope
    return z
