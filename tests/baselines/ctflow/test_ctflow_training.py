import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from baselines.ctflow.generation import load_generator
from baselines.ctflow.models.autoencoder import build_own
from baselines.ctflow.training import AUTOENCODER, DIFFUSERS, autoencoder_of, train
from trace_lightning import checkpoints
from trace_lightning.artifacts import file_digest, read_json
from trace_lightning.data.cache import test_cases as cases_of
from trace_lightning.data.preprocess import hu_to_unit
from trace_lightning.errors import UserError
from trace_lightning.fitting import RECORD
from trace_lightning.protocol import WEIGHTS

KILLED = """
import os, pickle, sys
from pathlib import Path
from baselines.ctflow.training import train

def progress(done, total, note):
    print(note, done, flush=True)
    if note == sys.argv[3] and done == int(sys.argv[4]):
        os._exit(9)  # as kill -9 would: no handler runs

train(pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]), progress)
"""


def silent(done: int, total: int, note: str = "") -> None:
    """Report nothing."""


def test_a_training_leaves_weights_records_and_curves_of_both_networks(trained):
    for folder in (trained, trained / AUTOENCODER):
        record = read_json(folder / RECORD)
        assert record["steps"] == 8
        assert record["weights_digest"] == file_digest(folder / WEIGHTS)
        assert np.isfinite(record["metrics"]["val/loss"])
        assert (folder / "metrics" / "session0" / "metrics.csv").read_text().count("\n") > 8
        assert not checkpoints.files(folder)


def test_own_latents_have_mean_zero_and_deviation_one(prepared, trained):
    from trace_lightning.data.cache import open_prepared

    autoencoder = autoencoder_of(prepared, trained)
    images = [np.asarray(case.image, np.float32) for case in open_prepared(prepared).cases("train")]
    latents = autoencoder.encode(torch.from_numpy(hu_to_unit(np.concatenate(images), prepared.data)))
    assert float(latents.mean()) == pytest.approx(0, abs=0.02)
    assert float(latents.std()) == pytest.approx(1, abs=0.02)


def test_killed_and_repeated_gives_the_same_weights(prepared, trained, tmp_path):
    """Stopped within the autoencoder, repeated, killed within the flow, repeated."""
    import pickle

    class Stopped(Exception):
        pass

    def stop(done: int, total: int, note: str = "") -> None:
        if (note, done) == ("autoencoder", 5):
            raise Stopped

    folder, pickled = tmp_path / "training", tmp_path / "experiment"
    with pytest.raises(Stopped):
        train(prepared, folder, stop)
    pickled.write_bytes(pickle.dumps(prepared))
    command = [sys.executable, "-c", KILLED, str(pickled), str(folder), "flow", "5"]
    killed = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    assert killed.returncode == 9
    assert killed.stdout.splitlines()[0] == "autoencoder 4"  # from the checkpoint of step 3, not from the start
    assert not (folder / WEIGHTS).exists()
    seen = []
    train(prepared, folder, lambda done, total, note="": seen.append((note, done)))
    assert seen[0] == ("flow", 4)
    for name in (WEIGHTS, f"{AUTOENCODER}/{WEIGHTS}"):
        assert file_digest(folder / name) == file_digest(trained / name)


def test_a_finished_training_is_left_alone(prepared, trained):
    before = (trained / RECORD).stat().st_mtime_ns
    train(prepared, trained, lambda done, total, note="": pytest.fail("it trained again"))
    assert (trained / RECORD).stat().st_mtime_ns == before


def test_weights_of_another_network_are_refused(prepared, trained):
    config = prepared.ctflow
    other = replace(prepared, ctflow=replace(config, model=replace(config.model, timestep_scale=1.0)))
    with pytest.raises(UserError, match=r"another experiment.*model"):
        load_generator(other, trained)


def volumes(experiment, folder: Path, seeds=(1, 2), **sample) -> list:
    changed = replace(experiment.ctflow, sample=replace(experiment.ctflow.sample, **sample))
    (case,) = cases_of(experiment)
    cases = [replace(case, labels=None), replace(case, labels=None, case_id=case.case_id)]
    return list(load_generator(replace(experiment, ctflow=changed), folder).generate(cases, list(seeds), silent))


@pytest.mark.parametrize("setting", ["full_body", "gt_head", "next_block"])
def test_volumes_lie_within_the_window_on_the_cases_grid(prepared, trained, setting):
    (case,) = cases_of(prepared)
    first, second = volumes(prepared, trained, setting=setting)
    assert first.volume.hu.shape == case.grid.shape
    assert first.volume.grid.equals(case.grid)
    assert np.isfinite(first.volume.hu).all()
    assert first.volume.hu.min() >= -1000
    assert first.volume.hu.max() <= 1000
    assert not np.array_equal(first.volume.hu, second.volume.hu)  # one case, two seeds
    evaluations = 2 * 2 * 2 * len(first.details["clip_starts"])  # steps, Heun, guidance
    assert first.evaluations_per_slice == pytest.approx(evaluations / case.grid.shape[0])


def test_the_same_seed_gives_the_same_volume_whatever_else_is_made(prepared, trained):
    first, second = volumes(prepared, trained, seeds=(1, 2)), volumes(prepared, trained, seeds=(2, 1))
    assert np.array_equal(first[0].volume.hu, second[1].volume.hu)
    assert np.array_equal(first[1].volume.hu, second[0].volume.hu)


def test_slices_of_eight_bits_have_at_most_256_values(prepared, trained):
    made, _ = volumes(prepared, trained, eight_bit=True, length="cut_or_repeat")
    steps = (made.volume.hu + 1000) * (255 / 2000)
    assert np.abs(steps - np.rint(steps)).max() < 1e-3


def test_gt_head_begins_with_the_real_slices(prepared, trained):
    from trace_lightning.data.cache import open_prepared

    generator = load_generator(prepared, trained)
    (real,) = open_prepared(prepared).cases("test")
    made, _ = volumes(prepared, trained, setting="gt_head", end="white", length="cut_or_repeat", overlap=0)
    image = torch.from_numpy(hu_to_unit(np.asarray(real.image[:8], np.float32), prepared.data))
    expected = generator.decode(generator.autoencoder.encode(image))
    assert np.abs(hu_to_unit(made.volume.hu[:8], prepared.data) - expected).max() < 1e-4


def test_latents_are_encoded_anew_when_the_autoencoder_is_another(prepared, trained):
    from baselines.ctflow.latents import weights_digest

    first, second = autoencoder_of(prepared, trained), autoencoder_of(prepared, trained)
    assert weights_digest(first) == weights_digest(second)
    next(second.parameters()).add_(1e-3)
    assert weights_digest(first) != weights_digest(second)


def test_an_unfinished_diffusers_folder_is_made_from_the_finished_training(prepared, trained, tmp_path):
    import shutil

    shutil.copytree(trained, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / AUTOENCODER / DIFFUSERS)
    (tmp_path / "copy" / WEIGHTS).unlink()
    train(prepared, tmp_path / "copy", silent)
    assert file_digest(tmp_path / "copy" / WEIGHTS) == file_digest(trained / WEIGHTS)


def test_published_weights_take_the_place_of_a_training(small, tmp_path):
    """Random weights in the published file's names and place are what is generated with."""
    from safetensors.torch import save_file

    from baselines.ctflow.generation import build_for
    from baselines.ctflow.models.published import FILE

    config = small.ctflow
    config.model.geometry = config.model.end_head = False
    config.model.published, config.sample.end = str(tmp_path / "denoiser_ema"), "white"
    torch.manual_seed(0)
    build_own(config.autoencoder.own).save_pretrained(tmp_path / "training" / AUTOENCODER / DIFFUSERS)
    denoiser = build_for(small, autoencoder_of(small, tmp_path / "training"))
    weights = {name: torch.rand_like(value) for name, value in denoiser.stdit.state_dict().items()}
    (tmp_path / "denoiser_ema").mkdir()
    save_file({f"model.{name}": value for name, value in weights.items()}, tmp_path / "denoiser_ema" / FILE)
    train(small, tmp_path / "training", silent)
    loaded = load_generator(small, tmp_path / "training").denoiser.stdit.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())

    del weights["pos_embed"]
    save_file({f"model.{name}": value for name, value in weights.items()}, tmp_path / "denoiser_ema" / FILE)
    (tmp_path / "training" / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"another network \(missing: pos_embed\)"):
        train(small, tmp_path / "training", silent)
