"""Several processes train as one does: the same batches, the same random numbers, the same curve."""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from trace_lightning.artifacts import read_json
from trace_lightning.config import Experiment
from trace_lightning.data.datamodule import StreamSampler
from trace_lightning.data.text import text_dim
from trace_lightning.errors import UserError
from trace_lightning.fitting import RECORD
from trace_lightning.module import build_denoiser
from trace_lightning.protocol import WEIGHTS
from trace_lightning.random_inputs import random_inputs
from trace_lightning.ranks import Part, silent, together
from trace_lightning.training import train

STEPS = 20


@pytest.fixture(autouse=True)
def threads(monkeypatch) -> None:
    """Without the variable Lightning would set the threads of this process for all tests that follow."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def curve(folder: Path, column: str) -> list[float]:
    with (folder / "metrics" / "session0" / "metrics.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


def longer(prepared: Experiment, devices: int, **train_keys) -> Experiment:
    keys = replace(prepared.train, max_steps=STEPS, val_every_steps=10, checkpoint_every_steps=10, **train_keys)
    return replace(prepared, train=keys, run=replace(prepared.run, devices=devices))


@settings(deadline=None)
@given(world=st.integers(1, 4), each=st.integers(1, 3), num_samples=st.integers(1, 9), start=st.integers(0, 3))
def test_the_parts_of_a_batch_are_the_batch(world, each, num_samples, start):
    keys = {"num_samples": num_samples, "batch_size": world * each, "num_steps": 5, "seed": 1, "start_step": start}
    parts = [list(StreamSampler(**keys, part=Part(rank, world))) for rank in range(world)]
    whole = list(StreamSampler(**keys))
    assert [[draw for part in batch for draw in part] for batch in zip(*parts, strict=True)] == whole


@settings(deadline=None)
@given(world=st.integers(1, 4), each=st.integers(1, 3))
def test_the_parts_of_random_numbers_are_those_of_one_process(world, each):
    whole = torch.randn((world * each, 5), generator=torch.Generator().manual_seed(3))
    parts = [Part(r, world).draw(torch.randn, (each, 5), torch.Generator().manual_seed(3)) for r in range(world)]
    assert torch.equal(torch.cat(parts), whole)


def test_a_batch_that_cannot_be_divided_is_refused(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")  # the processes are there already
    with pytest.raises(UserError, match=r"train.batch_size=4 cannot be divided among run.devices=3 x run.num_nodes=1"):
        train(longer(prepared, 3), tmp_path, silent)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{}, {"clean_frame": 0.5, "noise_correlation": 0.5}], ids=["ours", "known frame"])
def test_two_processes_have_the_curve_of_one(prepared, tmp_path, keys):
    """With float32 and sums in another order: 1e-5 of the loss, after 20 steps."""
    folders = {devices: tmp_path / str(devices) for devices in (1, 2)}
    for devices, folder in folders.items():
        train(longer(prepared, devices, **keys), folder, silent)
    one, two = (curve(folder, "train/loss") for folder in folders.values())
    assert len(one) == len(two) == STEPS
    np.testing.assert_allclose(two, one, rtol=1e-5)
    np.testing.assert_allclose(*(curve(folder, "val/loss") for folder in folders.values()), rtol=1e-5)
    weights, same = (load_file(folder / WEIGHTS) for folder in folders.values())
    assert max(float((same[name] - value).abs().max()) for name, value in weights.items()) < 1e-4
    assert [read_json(folder / RECORD)["processes"] for folder in folders.values()] == [1, 2]
    assert {path.name for path in folders[1].rglob("*")} == {path.name for path in folders[2].rglob("*")}


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("paired", [True, False])
def test_every_weight_has_a_gradient_whatever_the_row(tiny, paired, guided):
    """Processes wait for each other's gradients of all weights."""
    model = replace(tiny.model, paired_frames=paired, anatomical_guidance=guided, flow=paired and guided)
    experiment = replace(tiny, model=model)
    denoiser = build_denoiser(experiment, text_dim(experiment.text))
    denoiser(*random_inputs(experiment, 2, torch.device("cpu"))).sum().backward()
    assert [name for name, value in denoiser.named_parameters() if value.grad is None] == []


def test_too_few_tasks_of_slurm_are_refused(monkeypatch):
    for name, value in {"NTASKS": "1", "JOB_NAME": "a", "PROCID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(UserError, match="srun --ntasks-per-node=2"), together(2, refused):
        pytest.fail("it went on")


def refused() -> None:
    raise UserError("rank 1 has no room")


def test_what_was_wrong_in_another_process_is_said():
    with pytest.raises(UserError, match="rank 1 has no room"), together(2, refused):
        raise RuntimeError("Connection closed by peer")
    assert "LOCAL_RANK" not in os.environ
