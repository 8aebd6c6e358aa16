"""What a row will cost, measured: a few network evaluations on this machine, scaled up."""

from __future__ import annotations

import torch

from trace_lightning.config import Experiment
from trace_lightning.data.text import text_dim
from trace_lightning.device import pick_device
from trace_lightning.generation import SAMPLERS, sample_settings
from trace_lightning.models.denoiser import num_frames
from trace_lightning.module import build_denoiser
from trace_lightning.random_inputs import random_inputs
from trace_lightning.sampling.solver import Solver
from trace_lightning.stopwatch import best_seconds, step_cost

TYPICAL_SLICES = 100  # evaluations per slice change by less than 2 % beyond


def estimate(experiment: Experiment, num_volumes: int, num_slices: int) -> dict:
    """Return an estimate of time and memory.

    The network runs on two samples, forward and backward, then forward; time is scaled by batch size and steps.
    Data loading and validation come on top (about 10 % on a CPU).

    Args:
        experiment: the resolved keys.
        num_volumes: that are trained on.
        num_slices: of a typical volume.

    Returns:
        `parameters`, `train_seconds`, `generate_seconds_per_slice`, `memory_bytes` (of training).
    """
    device, train = torch.device(pick_device(experiment.run.device)), experiment.train
    batch = min(2, train.batch_size)
    denoiser = build_denoiser(experiment, text_dim(experiment.text)).to(device)
    inputs = random_inputs(experiment, batch, device)
    step = step_cost(denoiser, lambda: denoiser(*inputs).square().mean(), batch, device)
    with torch.inference_mode():
        evaluation = best_seconds(lambda: denoiser(*inputs), device) / batch
    sample = sample_settings(experiment)
    solver = Solver(denoiser, experiment.diffusion, sample)
    per_slice = SAMPLERS[sample.sampler].evaluations_per_slice(
        solver, sample, TYPICAL_SLICES, num_frames(experiment.model)
    )
    return {
        "parameters": step.parameters,
        "train_seconds": step.training_seconds(_num_steps(experiment, num_volumes, num_slices), train.batch_size),
        "generate_seconds_per_slice": evaluation * per_slice,
        "memory_bytes": step.training_bytes(train.batch_size),
    }


def _num_steps(experiment: Experiment, num_volumes: int, num_slices: int) -> int:
    """Return the optimiser steps of a training."""
    train, skips = experiment.train, experiment.data.skips
    if train.max_steps is not None:
        return train.max_steps
    views = sum(-(-num_slices // skip) for skip in skips) if experiment.model.paired_frames else num_slices
    return train.epochs * max(1, num_volumes * views // train.batch_size)
