"""What a row will cost, measured: a clip and a few slices through the networks on this machine, scaled up."""

from __future__ import annotations

import torch

from baselines.ctflow.config import CTFlowExperiment
from baselines.ctflow.models.autoencoder import SliceAutoencoder, build_own, load_autoencoder
from baselines.ctflow.models.denoiser import Conditions
from baselines.ctflow.module import AutoencoderModule, CTFlowModule
from baselines.ctflow.sampling import ClipSampler
from baselines.ctflow.text import embedding_shape
from trace_lightning.device import pick_device
from trace_lightning.stopwatch import best_seconds, step_cost

NUM_GEOMETRY = 4  # numbers of `latents.geometry`


def estimate(experiment: CTFlowExperiment, num_volumes: int, num_slices: int) -> dict:
    """Return an estimate of time and memory; encoding, loading and validation come on top.

    Args:
        experiment: the resolved keys.
        num_volumes: that are trained on.
        num_slices: of a typical volume.

    Returns:
        `parameters`, `train_seconds`, `generate_seconds_per_slice`, `memory_bytes` (of training).

    Raises:
        UserError: weights cannot be had.
    """
    device = torch.device(pick_device(experiment.run.device))
    config, size = experiment.ctflow, experiment.data.size
    own = config.autoencoder.source == "own"
    network = build_own(config.autoencoder.own).eval() if own else None
    autoencoder = (
        SliceAutoencoder(network, config.autoencoder.image_range) if own else load_autoencoder(config.autoencoder)
    )
    autoencoder.to(device)
    latents_shape = (autoencoder.channels, size // autoencoder.factor, size // autoencoder.factor)
    text_shape = embedding_shape(experiment)
    module = CTFlowModule(experiment, latents_shape, text_shape, num_steps=1).to(device)

    length, (channels, *places) = config.model.clip_length, latents_shape
    clips = torch.randn(1, channels, length, *places, device=device)
    batch = {"latents": clips, "ended": torch.zeros(1, length, device=device)}
    text = torch.randn(1, *text_shape, device=device)
    conditions = Conditions(clips, text, torch.ones(1, NUM_GEOMETRY, device=device))
    generator = torch.Generator(device=device)

    def loss() -> torch.Tensor:
        return sum(part for part in module.objective(batch, conditions, generator) if part is not None)

    steps = [(step_cost(module, loss, 1, device), config.train, num_volumes * num_slices)]
    if own:
        slices = torch.zeros(2, 1, size, size, device=device)
        coder = AutoencoderModule(experiment, num_steps=1).to(device)
        measured = step_cost(coder, lambda: coder.objective(coder.images(slices), generator)[0], len(slices), device)
        steps.append((measured, config.autoencoder.own, num_volumes * num_slices))
    if config.model.published is not None:
        steps = [(measured, train, 0) for measured, train, _ in steps]
    sampler = ClipSampler(module.denoiser.eval(), config.sample, config.flow, length)
    with torch.inference_mode():
        times = torch.zeros(1, device=device)
        evaluation = best_seconds(lambda: module.denoiser(clips, times, conditions), device)
        decoding = best_seconds(lambda: autoencoder.decode(clips[0].transpose(0, 1)), device) / length
    return {
        "parameters": sum(measured.parameters for measured, _, _ in steps),
        "train_seconds": sum(
            measured.training_seconds(_num_steps(train, samples), train.batch_size)
            for measured, train, samples in steps
        ),
        "generate_seconds_per_slice": evaluation * sampler.evaluations / (length - config.sample.overlap) + decoding,
        "memory_bytes": max(measured.training_bytes(train.batch_size) for measured, train, _ in steps),
    }


def _num_steps(train, num_samples: int) -> int:
    """Return the optimiser steps of a training; none on no samples."""
    if num_samples == 0:
        return 0
    return train.max_steps or train.epochs * max(1, num_samples // train.batch_size)
