"""Volumes without anatomy and networks that can be seen through, for the tests of the samplers."""

from __future__ import annotations

import torch

from trace_lightning.config import DiffusionConfig, SampleConfig
from trace_lightning.sampling.noise import InitialNoise
from trace_lightning.sampling.solver import Solver
from trace_lightning.sampling.volume import VolumeConditions

SIZE, CPU, CLASSES = 4, torch.device("cpu"), 50
DIFFUSION = DiffusionConfig(prediction_type="sample", beta_schedule="squaredcos_cap_v2")
SAMPLE = SampleConfig(num_inference_steps=3, timestep_spacing="trailing", strides=[1, 2, 4], tile_batch=3)


def volume(num_slices: int, lowest: int = 0) -> VolumeConditions:
    """Return a volume in which every slice has a class, and so a mask value, of its own; from `lowest` on."""
    classes = torch.arange(lowest, lowest + num_slices)[:, None, None].expand(-1, SIZE, SIZE)
    flow = {k: torch.full((max(num_slices - k, 0), 2, 1, 1), float(k)) for k in (1, 2, 3, 4, 7)}
    return VolumeConditions(num_slices, CPU, classes, CLASSES, "scaled", torch.zeros(2, 3), flow)


def noises(lengths: list[int], first_seed: int = 0) -> list[InitialNoise]:
    return [InitialNoise(first_seed + v, (2, SIZE, SIZE), "fresh") for v in range(len(lengths))]


class Recorder:
    """Predicts data that depend on both frames' noise, masks and positions; keeps what it was asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, x_t, timesteps, conditions):
        self.calls.append((x_t.clone(), timesteps.clone(), conditions))
        mixed = 0.2 * x_t + 0.1 * x_t.flip(1)
        return torch.tanh(mixed + conditions.masks[:, :2] - conditions.positions[:, :, None, None])


def slices_of(conditions) -> torch.Tensor:
    """Return the classes, and so the slices, of the pairs of a batch, (B, 2)."""
    return (conditions.masks[:, :2, 0, 0] * (CLASSES - 1)).round().long()


def run(sampler, lengths, sample=SAMPLE, denoise=None, diffusion=DIFFUSION, first_seed=0, lowest=None):
    """Return the volumes, and the recorder that made them."""
    recorder = denoise or Recorder()
    solver = Solver(recorder, diffusion, sample)
    counted: list[int] = []
    volumes = [volume(n, first) for n, first in zip(lengths, lowest or [0] * len(lengths), strict=True)]
    sampled = sampler(solver, volumes, noises(lengths, first_seed), sample, counted.append)
    assert sum(counted) == sum(lengths)
    return sampled, recorder
