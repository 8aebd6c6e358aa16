from __future__ import annotations

import csv
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from baselines.generatect.config import PHASES, of_phase
from baselines.generatect.generation import load_generator
from baselines.generatect.module import SuperResolutionModule, TokenizerModule, TransformerModule
from baselines.generatect.training import join_phases, train, train_transformer
from trace_lightning import checkpoints
from trace_lightning.artifacts import file_digest, read_json
from trace_lightning.data import cache
from trace_lightning.errors import UserError
from trace_lightning.fitting import RECORD
from trace_lightning.protocol import WEIGHTS, Case

KILLED = """
import os, sys
from pathlib import Path
from omegaconf import OmegaConf
from baselines.generatect.config import GenerateCTExperiment
from baselines.generatect.training import train

def progress(done, total, note):
    if note.startswith(sys.argv[3]) and done == int(sys.argv[4]):
        os._exit(9)  # as kill -9 would: no handler runs

keys = OmegaConf.merge(OmegaConf.structured(GenerateCTExperiment), OmegaConf.load(sys.argv[1]))
train(OmegaConf.to_object(keys), Path(sys.argv[2]), progress)
"""


def silent(done: int, total: int, note: str = "") -> None:
    """Report nothing."""


def volumes(experiment, folder: Path, cases: list[Case], seeds: list[int]) -> list[np.ndarray]:
    return [made.volume.hu for made in load_generator(experiment, folder).generate(cases, seeds, silent)]


def test_a_training_leaves_three_networks_in_one_file(tiny, trained):
    record = read_json(trained / RECORD)
    assert record["weights_digest"] == file_digest(trained / WEIGHTS)
    assert [record["phases"][phase]["steps"] for phase in PHASES] == [10, 5, 5]
    assert record["parameters"] == sum(record["phases"][phase]["parameters"] for phase in PHASES)
    for phase in PHASES:
        assert not checkpoints.files(trained / phase)


def test_the_discriminator_takes_every_fourth_step(trained):
    with (trained / "tokenizer" / "metrics" / "session0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    judged = [row["train/discriminator_loss"] for row in rows]  # Lightning repeats what an earlier step logged
    assert [int(value != "") for value in judged] == [0, 0, 0, *[1] * 7]
    assert len(set(judged[3:7])) == len(set(judged[7:])) == 1
    assert judged[3] != judged[7]
    assert len({row["train/loss"] for row in rows}) == 8


def test_killed_in_each_phase_and_repeated_gives_the_same_weights(tiny, trained, tmp_path):
    OmegaConf.save(OmegaConf.structured(tiny), tmp_path / "config.yaml")
    folder = tmp_path / "training"
    for phase, step in (("tokenizer", 5), ("transformer", 4), ("super_resolution", 4)):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "config.yaml"), str(folder), phase, str(step)]
        assert subprocess.run(command, check=False).returncode == 9
        assert checkpoints.files(folder / phase)
        assert not (folder / WEIGHTS).exists()
    seen = []
    train(tiny, folder, lambda done, total, note="": seen.append((note, done)))
    assert seen[-2:] == [("super_resolution", 4), ("super_resolution", 5)]  # from the checkpoint of step 3
    for phase in PHASES:
        assert file_digest(folder / phase / WEIGHTS) == file_digest(trained / phase / WEIGHTS)
    assert file_digest(folder / WEIGHTS) == file_digest(trained / WEIGHTS)


def test_a_finished_training_is_left_alone(tiny, trained):
    before = (trained / RECORD).stat().st_mtime_ns
    train(tiny, trained, lambda done, total, note="": pytest.fail("it trained again"))
    assert (trained / RECORD).stat().st_mtime_ns == before


def test_phases_after_the_first_belong_to_one_tokenizer(tiny, trained, tmp_path):
    """Tokens mean nothing to another tokenizer: weights trained on the tokens of one are not joined with another."""
    other = replace(tiny, seed=1)
    for phase in PHASES:
        (tmp_path / phase).symlink_to(trained / phase)
    (tmp_path / "tokenizer").unlink()
    from baselines.generatect.training import train_tokenizer

    train_tokenizer(other, tmp_path / "tokenizer", silent)
    with pytest.raises(UserError, match="tokenizer_weights"):
        join_phases(other, tmp_path)


def test_weights_of_another_network_are_refused(tiny, trained):
    other = deepcopy(tiny)
    other.generatect.transformer.depth = 2
    with pytest.raises(UserError, match=r"another experiment.*transformer"):
        load_generator(other, trained)
    with pytest.raises(UserError, match="no such file"):
        train_transformer(tiny, trained / "nowhere" / "transformer", silent, trained / "nowhere" / "tokenizer")


def test_a_training_volume_with_more_tokens_than_places_is_named(tiny, trained, tmp_path):
    short = deepcopy(tiny)
    short.generatect.transformer.max_tokens = 12
    with pytest.raises(UserError, match=r"train_\d+_a_1: \d+ slices are \d+ tokens, above .*max_tokens=12"):
        train_transformer(short, tmp_path, silent, trained / "tokenizer")


def test_a_volume_lies_on_its_cases_grid_within_the_window(tiny, trained):
    case = cache.test_cases(tiny)[0]
    seen = []
    (made,) = load_generator(tiny, trained).generate([case], [0], lambda done, total, note="": seen.append(done))
    depth = case.grid.shape[0]
    assert made.volume.hu.shape == case.grid.shape
    assert made.volume.grid.equals(case.grid)
    assert -1000 <= made.volume.hu.min() < made.volume.hu.max() <= 1000
    slices = depth + 1 - depth % 2
    assert made.details["model_slices"] == slices == seen[-1]
    assert made.evaluations_per_slice == pytest.approx((3 * 2 + 1 + slices * 2) / depth)


def test_a_volume_depends_on_its_case_and_seed_alone(tiny, trained):
    cases = cache.test_cases(tiny)
    alone = [volumes(tiny, trained, [case], [seed])[0] for case, seed in zip(cases, (3, 4), strict=True)]
    together = volumes(tiny, trained, cases, [3, 4])
    backwards = volumes(tiny, trained, cases[::-1], [4, 3])[::-1]
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(alone, backwards, strict=True))
    assert not np.array_equal(volumes(tiny, trained, cases[:1], [5])[0], alone[0])


@pytest.mark.parametrize("slice_noise", ["fresh", "shared"])
def test_slices_made_together_are_those_made_alone(tiny, trained, slice_noise):
    case, made = cache.test_cases(tiny)[0], []
    for abreast in (1, 5):
        experiment = deepcopy(tiny)
        experiment.generatect.sample.slices_abreast = abreast
        experiment.generatect.sample.slice_noise = slice_noise
        made += volumes(experiment, trained, [case], [3])
    assert np.abs(made[0] - made[1]).max() < 0.05  # HU


def test_other_lengths_are_made_by_the_same_weights(tiny, trained):
    case = cache.test_cases(tiny)[0]
    for depth in (4, 9):
        grid = case.grid.resized((depth, *case.grid.shape[1:]))
        (hu,) = volumes(tiny, trained, [Case("case", case.prompt, grid)], [0])
        assert hu.shape == grid.shape
    too_long = Case("tall", case.prompt, case.grid.resized((1200, *case.grid.shape[1:])))
    with pytest.raises(UserError, match=r"tall: 1201 slices are 2404 tokens"):
        volumes(tiny, trained, [too_long], [0])


def test_as_published_every_scan_is_squeezed_into_as_many_slices(tiny, tmp_path):
    experiment = deepcopy(tiny)
    config = experiment.generatect
    config.squeeze, config.num_slices, config.tokenizer.mixed_axes, config.tokenizer.causal_time = True, 7, True, False
    config.tokenizer.adversarial = False
    for phase in PHASES:
        getattr(config, phase).train.max_steps = 2
    config.tokenizer.train.batch_size = config.transformer.train.batch_size = 2  # of one length now
    train(experiment, tmp_path, silent)
    (tokens, *_) = (tmp_path / "tokenizer").glob("encoded_*/*_tokens.npy")
    assert np.load(tokens).shape == (4, 2, 2)
    case = cache.test_cases(experiment)[0]
    (made,) = load_generator(experiment, tmp_path).generate([case], [0], silent)
    assert made.volume.hu.shape == case.grid.shape
    assert made.details["model_slices"] == 7


def batch_of(size: int, **tensors: torch.Tensor) -> dict:
    text = torch.ones(size, 3, 64)
    return {"text": text, "case_id": ["case"] * size, **tensors}


def test_text_dropout_is_applied(tiny):
    """The published defect is a share of 0; what the key says is what happens."""
    for phase, build in (("transformer", TransformerModule), ("super_resolution", SuperResolutionModule)):
        for share in (0.0, 0.25, 1.0):
            experiment = deepcopy(of_phase(tiny, phase))
            experiment.train.text_dropout = share
            module = build(experiment, 64, num_steps=4)
            seen = []
            module.objective = lambda batch, present, generator, seen=seen: (seen.append(present), torch.zeros(()))[1]
            module.training_step(batch_of(800), 0)
            assert 1 - seen[0].float().mean() == pytest.approx(share, abs=0.05)


def test_a_transformer_that_knows_the_tokens_has_no_loss(tiny):
    module = TransformerModule(of_phase(tiny, "transformer"), 64, num_steps=4)
    tokens = torch.randint(32, (2, 3, 2, 2))
    perfect = torch.nn.functional.one_hot(tokens, 32) * 50.0
    module.maskgit.forward = lambda seen, text, keep: perfect
    present = torch.ones(2, dtype=torch.bool)
    assert float(module.objective(batch_of(2, tokens=tokens), present, torch.Generator())) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_a_denoiser_that_knows_the_data_has_no_loss(tiny, prediction):
    from baselines.generatect.models import diffusion

    experiment = deepcopy(of_phase(tiny, "super_resolution"))
    experiment.generatect.super_resolution.prediction = prediction
    module = SuperResolutionModule(experiment, 64, num_steps=4)
    data, coarse = torch.rand(4, 1, 16, 16) * 2 - 1, torch.rand(4, 1, 8, 8) * 2 - 1

    def perfect(x_t, log_snr, *_):
        if prediction == "sample":
            return data
        alpha, sigma = diffusion.alpha_sigma(log_snr)
        return diffusion.velocity(data, (x_t - alpha * data) / sigma, log_snr)

    module.unet.forward = perfect
    batch, present = batch_of(4, frames=data, coarse=coarse), torch.ones(4, dtype=torch.bool)
    assert float(module.objective(batch, present, torch.Generator())) < 1e-6


def test_the_perceptual_loss_is_frozen_or_learns_along_as_published(tiny, monkeypatch):
    from torchvision.models import VGG

    def small_vgg(weights: str) -> VGG:
        features = torch.nn.Sequential(torch.nn.Conv2d(3, 512, 3), torch.nn.ReLU())
        network = VGG(features, init_weights=False)
        network.classifier = torch.nn.Sequential(
            torch.nn.Linear(512 * 49, 8), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(8, 4)
        )
        return network

    monkeypatch.setattr("baselines.generatect.models.discriminator.load_vgg16", small_vgg)
    frames = torch.rand(2, 1, 5, 16, 16)
    for learns in (True, False):
        experiment = deepcopy(of_phase(tiny, "tokenizer"))
        config = experiment.generatect.tokenizer
        config.perceptual, config.perceptual_learns = True, learns
        module = TokenizerModule(experiment, 64, num_steps=4)
        judged = module.configure_optimizers()[0][0].param_groups[0]["params"]
        own = {id(parameter) for parameter in module.features.parameters()}
        assert bool(own & {id(parameter) for parameter in judged}) == learns
        module.log = lambda *arguments, **keys: None
        generator = torch.Generator().manual_seed(3)
        loss = module.objective(frames, generator)
        torch.rand(5)  # dropout is seeded by the step, not by what happened before
        module.ctvit.load_state_dict(module.ctvit.state_dict())
        assert torch.isfinite(loss)
        assert module.features.training == learns


def test_missing_perceptual_weights_are_an_error(tiny):
    experiment = deepcopy(of_phase(tiny, "tokenizer"))
    experiment.generatect.tokenizer.perceptual = True
    experiment.generatect.tokenizer.perceptual_weights = "no_such_file.pth"
    with pytest.raises(UserError, match=r"perceptual_weights=no_such_file.pth.*perceptual=false"):
        TokenizerModule(experiment, 64, num_steps=4)
