"""What a row will cost, measured: a few network evaluations on this machine, scaled up."""

from __future__ import annotations

import time

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

ADAM_COPIES = 4  # weights, gradients, two moments; the average is one more
TYPICAL_SLICES = 100  # evaluations per slice change by less than 2 % beyond


def estimate(experiment: Experiment, num_steps: int) -> dict:
    """Return an estimate of time and memory.

    The network runs on two samples, forward and backward, then forward; time is scaled by batch size and steps.
    Data loading and validation come on top (about 10 % on a CPU).

    Args:
        experiment: the resolved keys.
        num_steps: optimiser steps of the training.

    Returns:
        `parameters`, `train_seconds`, `generate_seconds_per_slice`, `memory_bytes` (of training).
    """
    device = torch.device(pick_device(experiment.run.device))
    batch = min(2, experiment.train.batch_size)
    denoiser = build_denoiser(experiment, text_dim(experiment.text)).to(device)
    frames, conditions = _random_batch(experiment, batch, device)
    timesteps = torch.full((batch,), 500, device=device)

    def train_once() -> None:
        denoiser(frames, timesteps, conditions).square().mean().backward()

    saved, weights = 0, {parameter.untyped_storage().data_ptr() for parameter in denoiser.parameters()}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        if tensor.untyped_storage().data_ptr() not in weights:
            saved += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        train_once()
    train_seconds = _seconds(train_once, device) / batch * experiment.train.batch_size * num_steps
    with torch.inference_mode():
        evaluation = _seconds(lambda: denoiser(frames, timesteps, conditions), device) / batch
    parameters = sum(parameter.numel() for parameter in denoiser.parameters())
    sample = sample_settings(experiment)
    solver = Solver(denoiser, experiment.diffusion, sample)
    per_slice = SAMPLERS[sample.sampler].evaluations_per_slice(
        solver, sample, TYPICAL_SLICES, num_frames(experiment.model)
    )
    return {
        "parameters": parameters,
        "train_seconds": train_seconds,
        "generate_seconds_per_slice": evaluation * per_slice,
        "memory_bytes": parameters * 4 * (ADAM_COPIES + 1) + saved // batch * experiment.train.batch_size,
    }


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


def _seconds(run, device: torch.device, repeats: int = 2) -> float:
    """Return the best wall time of `run`."""
    best = float("inf")
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best
