"""Can the autoencoder and the flow learn anything at all? One phantom volume, clip by clip after its own slices."""

import pytest
from ctflow_small import silent, small_experiment

from baselines.ctflow.checks import one_volume, overfit
from trace_lightning.data.cache import prepare


@pytest.mark.slow
def test_one_volume_is_learnt_by_heart(tmp_path):
    experiment = one_volume(small_experiment(tmp_path / "cache", size=64, spacing_z_mm=8.0))
    config = experiment.ctflow
    own = config.autoencoder.own
    own.unshuffle, own.block_channels, own.latent_channels = 4, [32], 8
    own.max_steps, own.batch_size, own.lr = 800, 8, 8e-3
    config.model.clip_length, config.model.patch_size = 16, [2, 4, 4]
    config.model.hidden_size, config.model.depth = 192, 2
    config.sample.evaluations, config.sample.guidance_scale = 16, 1.0
    train = config.train
    train.max_steps, train.batch_size, train.lr, train.decay_steps = 400, 4, 2e-3, 200
    train.text_dropout = 0.0
    for optimizer in (own, train):
        optimizer.beta2, optimizer.ema_decay, optimizer.warmup_steps = 0.99, 0.98, 20
        optimizer.checkpoint_every_steps, optimizer.log_every_steps = 1000, 100
    prepare(experiment, silent)
    found = overfit(experiment, tmp_path / "training", seed=0, progress=silent)
    assert found["autoencoder_psnr_db"] >= 28  # it bounds what the flow can reach
    assert found["next_block_psnr_db"] >= 25
