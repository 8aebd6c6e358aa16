"""A CTFlow of a few thousand weights on three phantom chests of 32 x 32 pixels."""

from __future__ import annotations

from pathlib import Path

import pytest

from baselines.ctflow.config import CTFlowExperiment
from trace_lightning.data.cache import prepare


def silent(done: int, total: int, note: str = "") -> None:
    """Report nothing."""


def small_experiment(cache_dir: Path) -> CTFlowExperiment:
    """Return the corrected CTFlow with clips of 8 slices, 4 x 4 latents and 8 steps of training."""
    experiment = CTFlowExperiment(name="ctflow")
    data = experiment.data
    data.phantom.num_train_patients, data.phantom.num_valid_patients = 3, 1
    data.phantom.size, data.phantom.spacing_z_mm = 32, [14.0]
    data.num_train_patients, data.num_val_patients, data.num_test_patients = 2, 1, 1
    data.size, data.num_workers = 32, 0
    experiment.text.architecture, experiment.text.pretrained = "tiny", "seeded"
    experiment.run.cache_dir, experiment.run.device = str(cache_dir), "cpu"
    config = experiment.ctflow
    config.prompt.tower = "open_clip"
    autoencoder, own = config.autoencoder, config.autoencoder.own
    autoencoder.source, autoencoder.image_range = "own", [-1.0, 1.0]
    own.block_channels, own.latent_channels, own.norm_groups = [8, 8, 8, 8], 4, 4
    model = config.model
    model.clip_length, model.hidden_size, model.depth, model.heads = 8, 32, 2, 2
    model.scrambled_heads, model.timestep_scale, model.geometry, model.end_head = False, 1000.0, True, True
    config.train.text_dropout, config.train.end_slices = 0.25, 8
    for optimizer, batch_size in ((config.train, 4), (own, 8)):
        optimizer.max_steps, optimizer.batch_size, optimizer.lr, optimizer.warmup_steps = 8, batch_size, 1e-3, 2
        optimizer.ema_decay, optimizer.precision, optimizer.min_lr = 0.5, "32-true", 1e-5
        optimizer.val_every_steps, optimizer.checkpoint_every_steps, optimizer.log_every_steps = 4, 3, 1
    sample = config.sample
    sample.num_inference_steps, sample.solver, sample.end, sample.max_overrun = 2, "heun", "head", 1.25
    sample.overlap, sample.length, sample.eight_bit, sample.guidance_scale = 2, "stretch", False, 1.5
    return experiment


@pytest.fixture
def small(tmp_path) -> CTFlowExperiment:
    """The small experiment, its data not prepared."""
    return small_experiment(tmp_path)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> CTFlowExperiment:
    """The small experiment, prepared; not to be changed by a test."""
    experiment = small_experiment(tmp_path_factory.mktemp("cache"))
    prepare(experiment, silent)
    return experiment


@pytest.fixture(scope="session")
def trained(prepared, tmp_path_factory) -> Path:
    """A finished training of `prepared`."""
    from baselines.ctflow.training import train

    folder = tmp_path_factory.mktemp("training")
    train(prepared, folder, silent)
    return folder
