"""Brickwork: all slices of a volume are denoised together, by pairs that tile z.

At each step every slice lies in a pair, as bricks lie in a course; the next course is shifted by half a brick, so that
what a pair agrees on travels along z. While noise is high the two slices of a pair lie far apart, then nearer: `k`
goes down through the distances that the network was trained on (4, 2, 1). A volume of N slices takes about N / 2
evaluations a step, all at once, where Algorithm 1 takes two runs a slice, one slice after the other. The network is
the same; it sees nothing but pairs under their own masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from trace_lightning.config import SampleConfig
from trace_lightning.sampling.noise import InitialNoise
from trace_lightning.sampling.solver import Solver
from trace_lightning.sampling.volume import VolumeConditions, batch_conditions

Pair = tuple[int, int]


def sample_brickwork(
    solver: Solver,
    volumes: Sequence[VolumeConditions],
    noises: Sequence[InitialNoise],
    settings: SampleConfig,
    advance: Callable[[int], None],
) -> list[Tensor]:
    """Sample volumes whose slices are denoised together; the pairs of all volumes share the network's batches.

    Args:
        solver: the reverse process over pairs.
        volumes: conditions, any numbers of slices.
        noises: of each volume.
        settings: `strides`, `all_pairs`, `noise_correlation`, `tile_batch`.
        advance: told after each step of as many slices as the step is worth.

    Returns:
        For each volume (N, H, W) in [-1, 1].
    """
    lengths, total = [volume.num_slices for volume in volumes], sum(volume.num_slices for volume in volumes)
    x_t = torch.empty((total, *noises[0].shape[1:]), device=volumes[0].device)  # (ΣN, H, W), the only state
    for own, noise, length in zip(x_t.split(lengths), noises, lengths, strict=True):
        own.copy_(noise.along_z(length, settings.noise_correlation))
    few = 2 * settings.tile_batch  # slices that a solver steps at once: its own arrays stay small beside the state
    runs = [solver.start() for _ in x_t.split(few)]

    num_steps = len(solver.timesteps)
    for step, timestep in enumerate(solver.timesteps):
        tiles = [(v, pair) for v, n in enumerate(lengths) for pair in course(n, step, num_steps, settings)]
        prediction = _predict(solver, x_t, timestep, volumes, tiles, settings)
        for own, predicted, run in zip(x_t.split(few), prediction.split(few), runs, strict=True):
            own.copy_(run(predicted, timestep, own))
        advance(total * (step + 1) // num_steps - total * step // num_steps)
    return list(x_t.clamp_(-1, 1).split(lengths))


def _predict(
    solver: Solver,
    x_t: Tensor,
    timestep: Tensor,
    volumes: Sequence[VolumeConditions],
    tiles: list[tuple[int, Pair]],
    settings: SampleConfig,
) -> Tensor:
    """Return the prediction for all slices, (ΣN, H, W): one that lies in two tiles follows their mean."""
    first = [0, *accumulate(volume.num_slices for volume in volumes)]  # of each volume in the state
    prediction, count = torch.zeros_like(x_t), x_t.new_zeros(len(x_t))
    size = settings.tile_batch
    for at in range(0, len(tiles), size):
        batch = tiles[at : at + size]
        slices = torch.tensor([[first[v] + i for i in pair] for v, pair in batch], device=x_t.device)  # (B, 2)
        conditions = batch_conditions([(volumes[v], pair) for v, pair in batch])
        predicted = solver.predict(x_t[slices], timestep, conditions)  # (B, 2, H, W)
        own = slices.flatten()
        prediction.index_add_(0, own, predicted.flatten(0, 1))
        count.index_add_(0, own, count.new_ones(len(own)))
    return prediction.div_(count[:, None, None])


def course(num_slices: int, step: int, num_steps: int, settings: SampleConfig) -> list[Pair]:
    """Return the pairs of one step, ascending, that together hold every slice of a volume.

    Pairs (i, i + k) stand in blocks of 2k slices; at every other step the blocks begin k slices higher. What is left
    below and above them is tiled with the shorter distances; a slice left alone is paired with its neighbour once more.
    At steps of `all_pairs` every pair at distance k is there, so that most slices lie in two.
    """
    fitting = sorted(k for k in settings.strides if 2 * k <= num_slices) or [1]
    stride = fitting[(num_steps - 1 - step) * len(fitting) // num_steps]
    last = step == num_steps - 1
    if num_slices > 1 and (settings.all_pairs == "always" or (settings.all_pairs == "last" and last)):
        return [(i, i + stride) for i in range(num_slices - stride)]
    shift = stride if step % 2 and num_slices > 2 else 0
    strides = [k for k in reversed(fitting) if k <= stride]
    return _tile(0, shift, strides, num_slices) + _tile(shift, num_slices, strides, num_slices)


def _tile(begin: int, end: int, strides: list[int], num_slices: int) -> list[Pair]:
    """Tile the slices from `begin` to `end` with pairs as far apart as fits; `strides` descend to 1."""
    pairs = []
    for k in strides:
        while end - begin >= 2 * k:
            pairs += [(i, i + k) for i in range(begin, begin + k)]
            begin += 2 * k
    if begin < end:
        partner = begin + 1 if begin + 1 < num_slices else max(begin - 1, 0)
        pairs.append((min(begin, partner), max(begin, partner)))
    return pairs


def evaluations_per_slice(solver: Solver, settings: SampleConfig, num_slices: int, num_frames: int = 2) -> float:
    """Return network evaluations per finished slice, a pair counted once.

    Half a step a slice; a slice left alone takes a whole one, so that a course of pairs shifted by h takes
    ceil(h / 2) + ceil((N - h) / 2). What fills the last batch of a compiled network is not counted.
    """
    steps = len(solver.timesteps)
    pairs = sum(len(course(num_slices, step, steps, settings)) for step in range(steps))
    return pairs * solver.evaluations_per_step / num_slices


def network_calls(solver: Solver, settings: SampleConfig, lengths: Sequence[int], num_frames: int = 2) -> int:
    """Return how many times the network is called, one call after the other, for volumes sampled together."""
    steps = len(solver.timesteps)
    pairs = [sum(len(course(n, step, steps, settings)) for n in lengths) for step in range(steps)]
    return sum(-(-count // settings.tile_batch) for count in pairs) * solver.evaluations_per_step
