import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trace_lightning import checkpoints
from trace_lightning.artifacts import file_digest, read_json, write_json
from trace_lightning.config import Experiment
from trace_lightning.data import cache
from trace_lightning.errors import UserError
from trace_lightning.fitting import RECORD
from trace_lightning.generation import load_generator
from trace_lightning.protocol import WEIGHTS
from trace_lightning.training import text_embeddings, train

KILLED = """
import os, sys
from pathlib import Path
from trace_lightning.config import read_experiment
from trace_lightning.training import train

def progress(done, total, note):
    if done == int(sys.argv[3]):
        os._exit(9)  # as kill -9 would: no handler runs

train(read_experiment(Path(sys.argv[1])), Path(sys.argv[2]), progress)
"""


def silent(done: int, total: int, note: str = "") -> None:
    """Report nothing."""


def volumes(experiment: Experiment, folder: Path, abreast: int = 1, **sample) -> list[np.ndarray]:
    experiment = replace(experiment, sample=replace(experiment.sample, volumes_abreast=abreast, **sample))
    cases = cache.test_cases(experiment)
    cases += [replace(case, case_id=f"{case.case_id}_again") for case in cases]
    generator = load_generator(experiment, folder)
    return [made.volume.hu for made in generator.generate(cases, [1, 2, 3, 4], silent)]


def test_a_training_leaves_weights_a_record_curves_and_pictures(trained):
    record = read_json(trained / RECORD)
    assert record["steps"] == 8
    assert record["weights_digest"] == file_digest(trained / WEIGHTS)
    assert (record["prompts"], record["prompts_truncated"]) == (5, 0)
    assert np.isfinite(record["metrics"]["val/loss"])
    assert (trained / "metrics" / "session0" / "metrics.csv").read_text().count("\n") > 8
    assert len(list((trained / "samples").glob("*.png"))) == 2
    assert not checkpoints.files(trained) and record["incidents"] == []


def test_the_memory_layout_changes_rounding_only(prepared, trained, tmp_path):
    train(replace(prepared, train=replace(prepared.train, channels_last=True)), tmp_path, silent)
    plain, tuned = (load_file(folder / WEIGHTS) for folder in (trained, tmp_path))
    assert plain.keys() == tuned.keys()
    for name, weights in plain.items():
        torch.testing.assert_close(tuned[name], weights, atol=1e-3, rtol=0, msg=name)  # Adam magnifies rounding


def test_prompts_beyond_the_context_are_said(prepared, tree, make_chest, tmp_path, capsys):
    """69 words and eight more tokens of age and sex are the 77 that fit."""
    for n, case_id in enumerate(("train_1_a_1", "train_2_a_1", "valid_1_a_1")):
        tree.add(case_id, make_chest(), impression=" ".join(["word"] * (69 + n)))
    experiment = replace(prepared, data=replace(prepared.data, root=str(tree.write_tables().root)))
    data = experiment.data
    data.num_train_patients, data.num_val_patients, data.num_test_patients = 1, 1, 1
    experiment.run = replace(prepared.run, cache_dir=str(tmp_path / "cache"))
    cache.prepare(experiment, silent)
    lengths = sorted(embedding.num_tokens for embedding in text_embeddings(experiment).values())
    assert lengths == [77, 78, 79]
    assert "2 of 3 prompts are longer than 77 tokens; what is beyond is not read" in capsys.readouterr().out


def test_killed_and_repeated_gives_the_same_weights(prepared, trained, tmp_path):
    from omegaconf import OmegaConf

    OmegaConf.save(OmegaConf.structured(prepared), tmp_path / "config.yaml")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "config.yaml"), str(tmp_path / "training"), "5"]
    assert subprocess.run(command, check=False).returncode == 9
    assert checkpoints.files(tmp_path / "training")
    assert not (tmp_path / "training" / WEIGHTS).exists()
    seen = []
    train(prepared, tmp_path / "training", lambda done, total, note="": seen.append(done))
    assert seen[0] == 4  # from the checkpoint of step 3, not from the start
    assert file_digest(tmp_path / "training" / WEIGHTS) == file_digest(trained / WEIGHTS)


def test_killed_after_the_last_step_the_weights_are_still_the_average(prepared, trained, tmp_path, monkeypatch):
    experiment = replace(prepared, train=replace(prepared.train, checkpoint_every_steps=4))  # 8 steps: one at the end

    def power_cut(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("trace_lightning.fitting.write_result", power_cut)
        train(experiment, tmp_path, silent)
    assert checkpoints.files(tmp_path)
    train(experiment, tmp_path, silent)
    assert file_digest(tmp_path / WEIGHTS) == file_digest(trained / WEIGHTS)


def test_a_finished_training_is_left_alone(prepared, trained):
    before = (trained / RECORD).stat().st_mtime_ns
    train(prepared, trained, lambda done, total, note="": pytest.fail("it trained again"))
    assert (trained / RECORD).stat().st_mtime_ns == before


def test_a_checkpoint_of_another_experiment_is_refused(prepared, tmp_path):
    (tmp_path / "step00000001.ckpt").write_bytes(b"")
    write_json(tmp_path / "owner.json", {"method": "another"})
    with pytest.raises(UserError, match="checkpoint of another experiment"):
        train(prepared, tmp_path, silent)


def test_weights_of_another_network_are_refused(prepared, trained):
    other = replace(prepared, model=replace(prepared.model, num_mask_classes=2))
    with pytest.raises(UserError, match=r"another experiment.*model"):
        load_generator(other, trained)


@pytest.mark.parametrize("sampler", ["overlap", "independent", "brickwork"])
def test_volumes_do_not_depend_on_the_batch(prepared, trained, sampler):
    for alone, together in zip(
        volumes(prepared, trained, 1, sampler=sampler), volumes(prepared, trained, 4, sampler=sampler), strict=True
    ):
        assert np.abs(alone - together).max() < 0.01  # HU


def test_brickwork_volumes_do_not_depend_on_the_tile_batch(prepared, trained):
    keys = {"sampler": "brickwork", "noise_correlation": 0.5, "solver": "dpmpp_2m"}
    for few, many in zip(
        volumes(prepared, trained, 4, tile_batch=3, **keys),
        volumes(prepared, trained, 2, tile_batch=16, **keys),
        strict=True,
    ):
        assert np.abs(few - many).max() < 0.01  # HU, that is 1e-5 of the window's half


def test_sequential_sampling_needs_the_weights_of_its_own_training(prepared, trained, tmp_path):
    known = replace(prepared, train=replace(prepared.train, clean_frame=0.5, noise_correlation=0.5, max_steps=2))
    known = replace(known, model=replace(known.model, mask_encoding="one_hot"))
    with pytest.raises(UserError, match="another experiment"):
        load_generator(known, trained)
    train(known, tmp_path, silent)
    keys = {"sampler": "sequential_clean", "warm_start": 0.6, "segments": 2}
    alone, together = volumes(known, tmp_path, 1, **keys), volumes(known, tmp_path, 4, **keys)
    for a, b in zip(alone, together, strict=True):
        assert np.abs(a - b).max() < 0.01  # HU


def test_the_same_seed_gives_the_same_volume_and_another_seed_another(prepared, trained):
    first, again = volumes(prepared, trained), volumes(prepared, trained)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[2])  # one case, two seeds


def test_volumes_lie_within_the_window_on_the_models_grid(prepared, trained):
    case = cache.test_cases(prepared)[0]
    (made,) = load_generator(prepared, trained).generate([case], [0], silent)
    assert made.volume.hu.shape == case.grid.shape
    assert made.volume.hu.min() >= -1000
    assert made.volume.hu.max() <= 1000
    assert made.evaluations_per_slice == pytest.approx(3 * (2 * 12 - 3) / 12)


def test_cuda_is_not_taken_for_granted(prepared, trained, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        load_generator(replace(prepared, run=replace(prepared.run, device="cuda")), trained)
