"""Checkpoints: two are kept, damage is seen and said, signals are answered between two steps."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_lightning import checkpoints
from trace_lightning.artifacts import file_digest, read_json
from trace_lightning.config import Experiment
from trace_lightning.device import within_memory
from trace_lightning.errors import Stopped, UserError
from trace_lightning.fitting import RECORD
from trace_lightning.protocol import WEIGHTS
from trace_lightning.training import train


def silent(done: int, total: int, note: str = "") -> None:
    """Report nothing."""


def at(step: int, action) -> object:
    """Return a progress that does something at a step."""
    return lambda done, total, note="": action() if done == step else None


def interrupted(experiment: Experiment, folder, step: int) -> None:
    """Train up to a step, and let SIGTERM stop it there."""
    with pytest.raises(Stopped, match=f"stopped by SIGTERM at step {step}, which is saved"):
        train(experiment, folder, at(step, lambda: os.kill(os.getpid(), signal.SIGTERM)))


@pytest.fixture
def saved(tmp_path):
    """Three checkpoints, written one after the other."""
    for step in (5, 10, 15):
        state = {"global_step": step, "weights": torch.arange(100.0)}
        checkpoints.CheckedFiles().save_checkpoint(state, tmp_path / f"step{step:08d}.ckpt")
    return tmp_path


def test_the_newest_whole_checkpoint_is_taken_up_and_damage_is_said(saved, caplog):
    assert checkpoints.take_up(saved).name == "step00000015.ckpt"
    assert checkpoints.incidents(saved) == []
    (saved / "step00000015.ckpt").write_bytes((saved / "step00000015.ckpt").read_bytes()[:-100])
    (saved / "step00000010.ckpt.json").unlink()
    assert checkpoints.take_up(saved).name == "step00000005.ckpt"
    (incident,) = checkpoints.incidents(saved)
    assert "step00000015.ckpt, step00000010.ckpt: damaged" in incident and "went on from step 5" in incident
    assert incident in caplog.text
    assert [path.name for path in checkpoints.files(saved)] == ["step00000005.ckpt"]
    (saved / "step00000005.ckpt").write_bytes(b"")
    assert checkpoints.take_up(saved) is None
    assert "from the beginning: no other is whole" in checkpoints.incidents(saved)[1]


def test_slurms_checkpoint_counts_by_its_step_and_a_torn_one_is_removed(saved):
    checkpoints.CheckedFiles().save_checkpoint({"global_step": 12}, saved / "hpc_ckpt_1.ckpt")
    assert checkpoints.take_up(saved).name == "step00000015.ckpt"
    checkpoints.CheckedFiles().save_checkpoint({"global_step": 20}, saved / "hpc_ckpt_2.ckpt")
    assert checkpoints.take_up(saved).name == "hpc_ckpt_2.ckpt"
    (saved / "hpc_ckpt_2.ckpt").write_bytes(b"PK")
    assert checkpoints.take_up(saved).name == "step00000015.ckpt"
    assert not (saved / "hpc_ckpt_2.ckpt").exists()  # Lightning would look for it by itself
    checkpoints.remove_all(saved)
    assert [path.name for path in saved.iterdir()] == [checkpoints.INCIDENTS]


@settings(deadline=None)
@given(place=st.integers(0, 10_000), flipped=st.integers(1, 255), cut=st.booleans())
def test_no_damage_passes_for_whole(tmp_path_factory, place, flipped, cut):
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / "step00000001.ckpt"
    checkpoints.CheckedFiles().save_checkpoint({"global_step": 1, "weights": torch.arange(100.0)}, path)
    content = bytearray(path.read_bytes())
    place %= len(content)
    content[place] ^= flipped
    path.write_bytes(content[:place] if cut else content)
    assert checkpoints.take_up(folder) is None


def test_a_signal_is_answered_between_two_steps_and_the_weights_come_out_the_same(prepared, trained, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    interrupted(prepared, tmp_path, 4)  # where a validation, which swaps the weights, follows
    assert signal.getsignal(signal.SIGTERM) is before
    assert sorted(path.name for path in checkpoints.files(tmp_path)) == ["step00000003.ckpt", "step00000004.ckpt"]
    with pytest.raises(Stopped, match="SIGUSR1 at step 7"):
        train(prepared, tmp_path, at(7, lambda: os.kill(os.getpid(), signal.SIGUSR1)))
    assert sorted(path.name for path in checkpoints.files(tmp_path)) == ["step00000006.ckpt", "step00000007.ckpt"]
    train(prepared, tmp_path, silent)
    assert file_digest(tmp_path / WEIGHTS) == file_digest(trained / WEIGHTS)


def test_a_damaged_checkpoint_costs_steps_and_changes_nothing(prepared, trained, tmp_path):
    interrupted(prepared, tmp_path, 4)
    last = tmp_path / "step00000004.ckpt"
    last.write_bytes(last.read_bytes()[:5000])
    seen = []
    train(prepared, tmp_path, lambda done, total, note="": seen.append(done))
    assert seen[0] == 4  # again, from step 3
    (incident,) = read_json(tmp_path / RECORD)["incidents"]
    assert "step00000004.ckpt: damaged" in incident
    assert file_digest(tmp_path / WEIGHTS) == file_digest(trained / WEIGHTS)


def test_under_slurm_the_requeue_saves_between_two_steps(prepared, trained, tmp_path, monkeypatch):
    """Lightning answers SIGUSR1: it saves, and calls `scontrol`."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "scontrol").write_text(f"#!/bin/sh\necho $* >> {tmp_path}/asked\n")
    (commands / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    slurm = {"NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "JOB_ID": 7, "JOB_NAME": "a", "NODELIST": "localhost"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    folder = tmp_path / "training"

    def requeued_at_4_killed_at_5(done, total, note=""):
        if done == 4:
            os.kill(os.getpid(), signal.SIGUSR1)
        if done == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="SIGTERM at step 5"):
        train(prepared, folder, requeued_at_4_killed_at_5)
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert sorted(path.name for path in checkpoints.files(folder)) == ["hpc_ckpt_1.ckpt", "step00000005.ckpt"]
    (folder / "step00000005.ckpt").unlink()
    train(prepared, folder, silent)
    assert file_digest(folder / WEIGHTS) == file_digest(trained / WEIGHTS)
    assert not checkpoints.files(folder)


def test_a_loss_that_is_not_finite_leaves_what_its_batch_was(prepared, trained, tmp_path, monkeypatch):
    from trace_lightning.module import TraceModule

    objective = TraceModule.objective

    def poisoned(self, *inputs):
        loss, x_t = objective(self, *inputs)
        return (loss * float("nan") if self.training and self.global_step == 4 else loss), x_t

    with monkeypatch.context() as patched, pytest.raises(UserError, match=r"loss became nan at step 4 on train_\d_a_1"):
        patched.setattr(TraceModule, "objective", poisoned)
        train(prepared, tmp_path, silent)
    bad = read_json(tmp_path / "bad_batch.json")
    assert (bad["step"], bad["loss"], len(bad["samples"])) == (4, "nan", 4)
    assert [sample["position"] for sample in bad["samples"]] == [16, 17, 18, 19]
    assert all(len(sample["slices"]) == 2 for sample in bad["samples"])
    train(prepared, tmp_path, silent)
    assert file_digest(tmp_path / WEIGHTS) == file_digest(trained / WEIGHTS)
    assert not (tmp_path / "bad_batch.json").exists()


def test_weights_that_are_not_finite_are_not_saved(prepared, tmp_path):
    experiment = replace(prepared, train=replace(prepared.train, lr=1e30, min_lr=1e30, warmup_steps=0))
    with pytest.raises(UserError, match=r"no longer finite at step|the loss became (nan|inf)"):
        train(experiment, tmp_path, silent)
    assert not checkpoints.files(tmp_path)


def test_a_lack_of_memory_names_the_keys(prepared, tmp_path, monkeypatch):
    from trace_lightning.module import TraceModule

    def greedy(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 ...")

    monkeypatch.setattr(TraceModule, "training_step", greedy)
    with pytest.raises(UserError, match=r"Tried to allocate 20.00 GiB.; lower train.batch_size \(now 4\), free"):
        train(prepared, tmp_path, silent)
    keys = {"sample.volumes_abreast": 2, "sample.tile_batch": None}
    message = r"lower sample.volumes_abreast \(now 2\), free the device"
    with pytest.raises(UserError, match=message), within_memory(torch.device("cpu"), "sampling a", keys):
        greedy()
