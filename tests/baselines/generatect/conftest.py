"""A tiny experiment of GenerateCT, and its finished training."""

from __future__ import annotations

from pathlib import Path

import pytest
from generatect_small import silent, small_experiment

from baselines.generatect.config import GenerateCTExperiment, TrainConfig, validate_generatect
from trace_lightning.data.cache import prepare


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> GenerateCTExperiment:
    """Two patients at 32 x 32, a few steps a phase, a checkpoint after each 3; prepared."""
    experiment = small_experiment(tmp_path_factory.mktemp("cache"), patients=2, size=32, spacing_z_mm=24.0)
    config = experiment.generatect
    config.tokenizer.dim, config.tokenizer.codebook_size, config.num_slices = 16, 32, 5
    config.tokenizer.adversarial, config.tokenizer.discriminator_dim, config.tokenizer.head_dim = True, 2, 16
    config.tokenizer.discriminator_lr = 1e-3
    config.transformer.dim, config.transformer.depth, config.transformer.max_tokens = 16, 1, 2048
    config.super_resolution.width = 8
    config.sample.token_steps, config.sample.slice_steps = 3, 2
    schedule = {"lr": 1e-3, "min_lr": 1e-4, "warmup_steps": 2, "checkpoint_every_steps": 3, "log_every_steps": 1}
    config.tokenizer.train = TrainConfig(max_steps=10, batch_size=2, grad_clip=0.5, ema_decay=0.5, **schedule)
    config.transformer.train = TrainConfig(max_steps=5, grad_clip=2.0, text_dropout=0.5, **schedule)
    config.super_resolution.train = TrainConfig(max_steps=5, batch_size=2, text_dropout=0.5, **schedule)
    validate_generatect(experiment)
    prepare(experiment, silent)
    return experiment


@pytest.fixture(scope="session")
def trained(tiny: GenerateCTExperiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training of `tiny`."""
    from baselines.generatect.training import train

    folder = tmp_path_factory.mktemp("training")
    train(tiny, folder, silent)
    return folder
