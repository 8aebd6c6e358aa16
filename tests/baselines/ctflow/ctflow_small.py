"""Small experiments of CTFlow on the built-in phantom."""

from __future__ import annotations

from pathlib import Path

from baselines.ctflow.config import CTFlowExperiment
from experiments.load import load


def silent(done: int, total: int, note: str = "") -> None:
    """Report nothing."""


def small_experiment(cache_dir: Path, size: int = 32, spacing_z_mm: float = 14.0) -> CTFlowExperiment:
    """Return the preset that mends the defects at the scale of `smoke`: two patients, clips of 8 slices, 8 steps."""
    experiment = load("ctflow", "smoke", [f"run.cache_dir={cache_dir}"]).experiment
    data, phantom = experiment.data, experiment.data.phantom
    phantom.num_train_patients, phantom.num_valid_patients = 3, 1
    phantom.size, phantom.spacing_z_mm = size, [spacing_z_mm]
    data.num_train_patients, data.num_val_patients, data.num_test_patients = 2, 1, 1
    data.size = size
    config = experiment.ctflow
    for optimizer in (config.train, config.autoencoder.own):
        optimizer.max_steps, optimizer.ema_decay, optimizer.warmup_steps = 8, 0.5, 2
        optimizer.val_every_steps, optimizer.checkpoint_every_steps, optimizer.log_every_steps = 4, 3, 1
    return experiment
