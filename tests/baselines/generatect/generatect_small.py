"""Small experiments of GenerateCT on the built-in phantom."""

from __future__ import annotations

from pathlib import Path

from baselines.generatect.config import GenerateCTExperiment, fixed


def silent(done: int, total: int, note: str = "") -> None:
    """Report nothing."""


def small_experiment(cache: Path, patients: int, size: int, spacing_z_mm: float) -> GenerateCTExperiment:
    """Return the preset `fixed` with networks that fit a test, on the phantom."""
    experiment = GenerateCTExperiment(name="generatect", generatect=fixed())
    data, phantom = experiment.data, experiment.data.phantom
    phantom.num_train_patients, phantom.num_valid_patients = patients, 2
    phantom.size, phantom.spacing_z_mm = size, [spacing_z_mm]
    data.num_train_patients, data.num_val_patients, data.num_test_patients = patients, 0, 2
    data.size, data.num_workers, data.mask_source = size, 0, "phantom"
    experiment.text.architecture, experiment.text.pretrained = "tiny", "seeded"
    experiment.run.cache_dir, experiment.run.device = str(cache), "cpu"
    config = experiment.generatect
    config.text = "open_clip"
    tokenizer, transformer, fine = config.tokenizer, config.transformer, config.super_resolution
    tokenizer.spatial_depth = tokenizer.time_depth = 1
    tokenizer.heads, tokenizer.head_dim, tokenizer.patch, tokenizer.window = 4, 16, 8, None
    tokenizer.perceptual, tokenizer.commitment_weight = "off", 0.25
    transformer.heads, transformer.head_dim, transformer.max_tokens, transformer.embedding_gradient = 4, 16, 2048, 1.0
    fine.factor, fine.width_factors, fine.cross_attention, fine.blocks_per_level = 2, [1, 2], [False, True], 1
    fine.heads, fine.head_dim = 2, 16
    return experiment
