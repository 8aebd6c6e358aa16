"""Small experiments of GenerateCT on the built-in phantom."""

from __future__ import annotations

from pathlib import Path

from baselines.generatect.config import GenerateCTExperiment
from experiments.load import load


def silent(done: int, total: int, note: str = "") -> None:
    """Report nothing."""


def small_experiment(cache: Path, patients: int, size: int, spacing_z_mm: float) -> GenerateCTExperiment:
    """Return the preset that mends the defects at the phantom's scale, of few patients and short volumes."""
    experiment = load("generatect", "phantom", [f"run.cache_dir={cache}"]).experiment
    data, phantom = experiment.data, experiment.data.phantom
    phantom.num_train_patients, phantom.num_valid_patients = patients, 2
    phantom.size, phantom.spacing_z_mm = size, [spacing_z_mm]
    data.num_train_patients, data.num_val_patients, data.num_test_patients = patients, 0, 2
    data.size = size
    return experiment
