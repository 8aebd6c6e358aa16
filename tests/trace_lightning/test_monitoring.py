"""What is logged of a training's speed."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from trace_lightning import fitting, monitoring
from trace_lightning.checkpoints import Checkpoints
from trace_lightning.monitoring import Throughput


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_validations_count_neither_as_steps_nor_as_waiting(monkeypatch):
    clock, logged = Clock(), {}
    monkeypatch.setattr(monitoring, "time", clock)
    module = SimpleNamespace(log=logged.__setitem__, device=torch.device("cpu"))
    trainer, throughput = SimpleNamespace(log_every_n_steps=2), Throughput()

    def step(waiting_s: float, working_s: float) -> None:
        clock.now += waiting_s
        throughput.on_train_batch_start(trainer, module, None, 0)
        clock.now += working_s
        throughput.on_train_batch_end(trainer, module, None, None, 0)

    def validate(seconds: float) -> None:
        throughput.on_validation_start(trainer, module)
        clock.now += seconds
        throughput.on_validation_end(trainer, module)

    throughput.on_train_start(trainer, module)
    step(1, 3)
    validate(50)
    step(1, 3)
    assert logged["train/steps_per_second"] == pytest.approx(2 / 8)
    assert logged["train/waiting_share"] == pytest.approx(2 / 8)
    validate(50)  # the first thing of a window
    step(0, 2)
    step(2, 4)
    assert logged["train/steps_per_second"] == pytest.approx(2 / 8)
    assert logged["train/waiting_share"] == pytest.approx(2 / 8)


def test_it_comes_after_what_saves(prepared, tmp_path):
    experiment = replace(prepared, run=replace(prepared.run, wandb="off"))
    trainer = fitting._trainer(experiment, tmp_path, [], lambda *_: None, 8, "train", "", False)
    kinds = [type(callback) for callback in trainer.callbacks]
    assert kinds.index(Throughput) > kinds.index(Checkpoints)
