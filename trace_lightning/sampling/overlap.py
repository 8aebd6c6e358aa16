"""Overlapping-frame guidance: Algorithm 1, line by line, for any number of volumes abreast."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trace_lightning.config import SampleConfig
from trace_lightning.sampling.guidance_map import guidance_map
from trace_lightning.sampling.noise import InitialNoise
from trace_lightning.sampling.solver import Solver
from trace_lightning.sampling.volume import VolumeConditions, batch_conditions, batch_masks


def sample_overlap(
    solver: Solver,
    volumes: Sequence[VolumeConditions],
    noises: Sequence[InitialNoise],
    settings: SampleConfig,
    advance: Callable[[int], None],
) -> list[Tensor]:
    """Sample volumes in which each frame guides the next (Sec. 3.3).

    Frames count from 0 to N - 1. `volumes_abreast` volumes go through each step together; a shorter one leaves early.

    Args:
        solver: the reverse process over pairs.
        volumes: conditions with masks (one channel a frame), any numbers of slices.
        noises: of each volume.
        settings: gamma, smoothing, `line9_frame`, `volumes_abreast`.
        advance: told of each batch how many slices it finished.

    Returns:
        For each volume (N, H, W) in [-1, 1].
    """
    done: list[Tensor] = []
    for at in range(0, len(volumes), settings.volumes_abreast):
        group = slice(at, at + settings.volumes_abreast)
        done += _sample_abreast(solver, volumes[group], noises[group], settings, advance)
    return done


def _sample_abreast(
    solver: Solver,
    volumes: Sequence[VolumeConditions],
    noises: Sequence[InitialNoise],
    settings: SampleConfig,
    advance: Callable[[int], None],
) -> list[Tensor]:
    frames: list[list[Tensor]] = [[] for _ in volumes]
    line9_offset = 1 if settings.line9_frame == "n+1" else 0

    def run(active: list[int], n: int, masks: Tensor | None = None) -> Tensor:
        conditions = batch_conditions([(volumes[v], volumes[v].frames(n, 2)) for v in active], masks)
        noise = torch.stack([noises[v].next() for v in active]).to(conditions.positions.device)
        return solver.run(noise, conditions)  # (V, 2, H, W)

    def guide(masks: Tensor, images: Tensor) -> Tensor:
        return guidance_map(masks, (images + 1) / 2, settings.gamma, settings.smoothing_sigma)  # (V, 1, H, W)

    everyone = list(range(len(volumes)))
    for v, pair in zip(everyone, run(everyone, 0), strict=True):  # lines 3-4
        frames[v] = [pair[i] for i in range(min(2, volumes[v].num_slices))]
    advance(sum(len(of_volume) for of_volume in frames))

    for n in range(1, max(volume.num_slices for volume in volumes) - 1):  # line 5
        active = [v for v in everyone if n < volumes[v].num_slices - 1]
        masks = batch_masks([(volumes[v], (n, n + 1)) for v in active])  # (V, 2, H, W)
        mask_n, mask_next = masks[:, :1], masks[:, 1:]
        frame_n = torch.stack([frames[v][n] for v in active])[:, None]
        guide_n = guide(mask_n, frame_n)  # line 6
        draft = run(active, n, torch.cat([guide_n, mask_next], dim=1))  # lines 7-8
        guide_next = guide(mask_next, draft[:, line9_offset, None])  # line 9
        pair = run(active, n, torch.cat([guide_n, guide_next], dim=1))  # lines 10-11
        for v, (first, second) in zip(active, pair, strict=True):
            frames[v][n] = first
            frames[v].append(second)
        advance(len(active))
    return [torch.stack(of_volume) for of_volume in frames]


def evaluations_per_slice(solver: Solver, settings: SampleConfig, num_slices: int, num_frames: int = 2) -> float:
    """Return network evaluations per finished slice: 2N - 3 runs for N > 1 slices, a pair counted once."""
    return solver.evaluations * max(2 * num_slices - 3, 1) / num_slices


def network_calls(solver: Solver, settings: SampleConfig, lengths: Sequence[int], num_frames: int = 2) -> int:
    """Return how many times the network is called, one call after the other, for volumes sampled together."""
    groups = [lengths[at : at + settings.volumes_abreast] for at in range(0, len(lengths), settings.volumes_abreast)]
    return solver.evaluations * sum(max(2 * max(group) - 3, 1) for group in groups)
