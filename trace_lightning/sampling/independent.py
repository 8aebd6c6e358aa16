"""Samples that know nothing of each other: pairs (0, 1), (2, 3), ... or single slices along z.

With `pair_stride: 1` a pair begins at every slice and the first frame of each is kept, as Algorithm 1 keeps them: what
overlapping-frame guidance does beyond that shows against this control.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trace_lightning.config import SampleConfig
from trace_lightning.sampling.noise import InitialNoise
from trace_lightning.sampling.solver import Solver
from trace_lightning.sampling.volume import VolumeConditions, batch_conditions


def sample_independent(
    solver: Solver,
    volumes: Sequence[VolumeConditions],
    noises: Sequence[InitialNoise],
    settings: SampleConfig,
    advance: Callable[[int], None],
) -> list[Tensor]:
    """Sample volumes from unlinked samples: the traditional inference that OFG is compared with (Sec. 4.5).

    Args:
        solver: the reverse process.
        volumes: conditions, any numbers of slices.
        noises: of each volume.
        settings: `volumes_abreast` samples go through the network together.
        advance: told of each batch how many slices it finished.

    Returns:
        For each volume (N, H, W) in [-1, 1].
    """
    num_frames = noises[0].shape[0]
    slices: list[dict[int, Tensor]] = [{} for _ in volumes]
    stride = min(settings.pair_stride, num_frames)
    starts = [
        (v, start) for v, volume in enumerate(volumes) for start in sample_starts(volume.num_slices, num_frames, stride)
    ]
    for at in range(0, len(starts), settings.volumes_abreast):
        batch = starts[at : at + settings.volumes_abreast]
        conditions = batch_conditions([(volumes[v], volumes[v].frames(start, num_frames)) for v, start in batch])
        noise = torch.stack([noises[v].next() for v, _ in batch]).to(conditions.positions.device)
        finished = 0
        for (v, start), frames in zip(batch, solver.run(noise, conditions), strict=True):
            for index, frame in zip(volumes[v].frames(start, num_frames), frames, strict=True):
                finished += index not in slices[v]
                slices[v][index] = frame
        advance(finished)
    return [torch.stack([of_volume[n] for n in range(len(of_volume))]) for of_volume in slices]


def sample_starts(num_slices: int, num_frames: int, stride: int) -> list[int]:
    """Return where samples begin so that they cover all slices, `stride` apart; the last may begin earlier to fit."""
    starts = list(range(0, num_slices - num_frames + 1, stride))
    if not starts or starts[-1] + num_frames < num_slices:
        starts.append(max(0, num_slices - num_frames))
    return starts


def evaluations_per_slice(solver: Solver, settings: SampleConfig, num_slices: int, num_frames: int) -> float:
    """Return network evaluations per finished slice, a pair counted once."""
    stride = min(settings.pair_stride, num_frames)
    return solver.evaluations * len(sample_starts(num_slices, num_frames, stride)) / num_slices


def network_calls(solver: Solver, settings: SampleConfig, lengths: Sequence[int], num_frames: int) -> int:
    """Return how many times the network is called, one call after the other, for volumes sampled together."""
    stride = min(settings.pair_stride, num_frames)
    samples = sum(len(sample_starts(n, num_frames, stride)) for n in lengths)
    return solver.evaluations * -(-samples // settings.volumes_abreast)
