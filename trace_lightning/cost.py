"""What a row will cost, measured: a few network evaluations on this machine, scaled up."""

from __future__ import annotations

import torch

from trace_lightning.config import Experiment
from trace_lightning.data.text import context_length, text_dim
from trace_lightning.device import pick_device
from trace_lightning.generation import SAMPLERS, sample_settings
from trace_lightning.models.conditioners import Conditions
from trace_lightning.models.denoiser import num_frames
from trace_lightning.models.mask_encoding import num_mask_channels
from trace_lightning.module import build_denoiser
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
    frames, conditions = _random_batch(experiment, batch, device)
    timesteps = torch.full((batch,), 500, device=device)

    step = step_cost(denoiser, lambda: denoiser(frames, timesteps, conditions).square().mean(), batch, device)
    with torch.inference_mode():
        evaluation = best_seconds(lambda: denoiser(frames, timesteps, conditions), device) / batch
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


def _random_batch(experiment: Experiment, batch: int, device: torch.device) -> tuple[torch.Tensor, Conditions]:
    model, size = experiment.model, experiment.data.size
    frames = num_frames(model)
    small = size // experiment.data.flow_stride
    guided = model.anatomical_guidance
    channels = num_mask_channels(frames, model.num_mask_classes, model.mask_encoding)
    tokens = context_length(experiment.text), text_dim(experiment.text)
    conditions = Conditions(
        positions=torch.rand(batch, frames, device=device),
        masks=torch.rand(batch, channels, size, size, device=device) if guided else None,
        text=torch.randn(batch, *tokens, device=device) if guided else None,
        flow=torch.zeros(batch, 2, small, small, device=device) if model.flow else None,
    )
    return torch.randn(batch, frames, size, size, device=device), conditions
