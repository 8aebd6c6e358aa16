"""One slice after the other, each given the finished one below it clean.

Algorithm 1 tells the network of the known frame through its mask channels, and draws that frame again. Here the known
frame is the first of the pair itself, and stays. The network must have been trained so (`train.clean_frame`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trace_lightning.config import SampleConfig
from trace_lightning.models.conditioners import Conditions
from trace_lightning.sampling.noise import InitialNoise
from trace_lightning.sampling.solver import Solver
from trace_lightning.sampling.volume import VolumeConditions, batch_conditions


@dataclass
class _Segment:
    """A run of slices of one volume, and those of it that are done."""

    owner: int  # which of the volumes
    volume: VolumeConditions
    noise: Tensor  # (N, H, W) of the whole volume
    begin: int
    end: int
    slices: list[Tensor] = field(default_factory=list)

    @property
    def top(self) -> int:
        """The last slice that is done."""
        return self.begin + len(self.slices) - 1


def sample_sequential(
    solver: Solver,
    volumes: Sequence[VolumeConditions],
    noises: Sequence[InitialNoise],
    settings: SampleConfig,
    advance: Callable[[int], None],
) -> list[Tensor]:
    """Sample volumes slice by slice, each given the clean slice below it.

    A volume is cut into `segments` that grow side by side; nothing links the first slice of one to the last of the
    segment below but the noise, where it is correlated. All segments of all volumes go through each step together.

    Args:
        solver: the reverse process over pairs.
        volumes: conditions, any numbers of slices.
        noises: of each volume.
        settings: `segments`, `warm_start`, `noise_correlation`.
        advance: told how many slices were finished.

    Returns:
        For each volume (N, H, W) in [-1, 1].
    """
    segments = []
    for owner, (volume, noise) in enumerate(zip(volumes, noises, strict=True)):
        of_slices = noise.along_z(volume.num_slices, settings.noise_correlation).to(volume.device)
        bounds = segment_bounds(volume.num_slices, settings.segments)
        segments += [_Segment(owner, volume, of_slices, begin, end) for begin, end in bounds]

    pairs = [segment.volume.frames(segment.begin, 2) for segment in segments]  # nothing is known yet
    conditions = batch_conditions([(segment.volume, pair) for segment, pair in zip(segments, pairs, strict=True)])
    noise = torch.stack([segment.noise[list(pair)] for segment, pair in zip(segments, pairs, strict=True)])
    for segment, pair in zip(segments, solver.run(noise, conditions), strict=True):
        segment.slices = list(pair[: segment.end - segment.begin])
    advance(sum(len(segment.slices) for segment in segments))

    while growing := [segment for segment in segments if segment.top + 1 < segment.end]:
        conditions = batch_conditions([(segment.volume, (segment.top, segment.top + 1)) for segment in growing])
        known = torch.stack([segment.slices[-1] for segment in growing])  # (S, H, W)
        noise = torch.stack([segment.noise[segment.top + 1] for segment in growing])
        conditions = replace(conditions, known=torch.ones(len(growing), device=known.device))
        for segment, made in zip(growing, _next_slices(solver, known, noise, conditions, settings), strict=True):
            segment.slices.append(made)
        advance(len(growing))

    slices: list[list[Tensor]] = [[] for _ in volumes]
    for segment in segments:
        slices[segment.owner] += segment.slices
    return [torch.stack(of_volume) for of_volume in slices]


def _next_slices(
    solver: Solver, known: Tensor, noise: Tensor, conditions: Conditions, settings: SampleConfig
) -> Tensor:
    """Return the slices above `known`, (S, H, W): only the second frame of each pair is noise, and is denoised."""
    timesteps = solver.timesteps[-warm_steps(solver, settings) :]
    x_t = noise if len(timesteps) == len(solver.timesteps) else solver.add_noise(known, noise, timesteps[0])
    step = solver.start()
    for timestep in timesteps:
        predicted = solver.predict(torch.stack([known, x_t], dim=1), timestep, conditions)  # (S, 2, H, W)
        x_t = step(predicted[:, 1], timestep, x_t)
    return x_t.clamp(-1, 1)


def segment_bounds(num_slices: int, segments: int) -> list[tuple[int, int]]:
    """Return (begin, end) of each segment: as equal as can be, of two slices at least where there are two."""
    count = max(min(segments, num_slices // 2), 1)
    return [(num_slices * s // count, num_slices * (s + 1) // count) for s in range(count)]


def warm_steps(solver: Solver, settings: SampleConfig) -> int:
    """Return how many of the timesteps a slice runs through that starts from the slice below, noised so far."""
    return max(round(settings.warm_start * len(solver.timesteps)), 1)


def evaluations_per_slice(solver: Solver, settings: SampleConfig, num_slices: int, num_frames: int = 2) -> float:
    """Return network evaluations per finished slice: a run for a segment's first pair, one for each further slice."""
    warm = warm_steps(solver, settings)
    lengths = [end - begin for begin, end in segment_bounds(num_slices, settings.segments)]
    steps = sum(len(solver.timesteps) + max(length - 2, 0) * warm for length in lengths)
    return steps * solver.evaluations_per_step / num_slices


def network_calls(solver: Solver, settings: SampleConfig, lengths: Sequence[int], num_frames: int = 2) -> int:
    """Return how many times the network is called, one call after the other, for volumes sampled together."""
    longest = max(end - begin for n in lengths for begin, end in segment_bounds(n, settings.segments))
    steps = len(solver.timesteps) + max(longest - 2, 0) * warm_steps(solver, settings)
    return steps * solver.evaluations_per_step
