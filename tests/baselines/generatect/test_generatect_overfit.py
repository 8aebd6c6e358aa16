"""Can the three phases learn anything at all? One phantom volume is reconstructed, and generated from its report."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from generatect_small import silent, small_experiment

from baselines.generatect.config import validate_generatect
from baselines.generatect.generation import load_generator
from baselines.generatect.training import train
from baselines.generatect.views import coarse_volume, slice_positions
from trace_lightning.data.cache import open_prepared, prepare
from trace_lightning.protocol import Case

WANTED_DB = 25


def psnr_db(error: float, peak: float) -> float:
    return float(10 * np.log10(peak**2 / error))


@pytest.mark.slow
def test_one_volume_is_reconstructed_and_generated(tmp_path):
    experiment = small_experiment(tmp_path / "cache", patients=1, size=64, spacing_z_mm=15.0)
    config = experiment.generatect
    config.num_slices = 17  # the whole volume
    for phase, max_steps in (("tokenizer", 250), ("transformer", 150), ("super_resolution", 450)):
        getattr(config, phase).train.max_steps = max_steps
    config.tokenizer.train.batch_size = 1
    validate_generatect(experiment)
    prepare(experiment, silent)
    train(experiment, tmp_path / "training", silent)
    (case,) = open_prepared(experiment).cases("train")
    generator = load_generator(experiment, tmp_path / "training")

    coarse = coarse_volume(case, slice_positions(len(case.image), config), experiment)
    frames = torch.from_numpy(coarse)[None, None]
    with torch.inference_mode():
        reconstruction, _, _ = generator.tokenizer(frames)
    assert psnr_db(float((reconstruction - frames).square().mean()), peak=2) >= WANTED_DB

    (made,) = generator.generate([Case(case.case_id, case.prompt, case.grid)], [0], silent)
    error = np.square(made.volume.hu - np.asarray(case.image, np.float32)).mean()
    assert psnr_db(float(error), peak=2000) >= WANTED_DB
