"""Precision, memory layout and compilation change speed, and volumes within stated bounds."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from trace_lightning.config import SampleConfig
from trace_lightning.data import cache
from trace_lightning.engine import fitting_batch, flops, tuned
from trace_lightning.errors import UserError
from trace_lightning.generation import load_generator
from trace_lightning.models.conditioners import Conditions

CPU = torch.device("cpu")


def volume(prepared, trained, **keys) -> np.ndarray:
    sample = replace(prepared.sample, sampler="brickwork", solver="dpmpp_2m", strides=[1], **keys)
    experiment = replace(prepared, sample=sample)
    case = cache.test_cases(experiment)[0]
    (made,) = load_generator(experiment, trained).generate([case], [0], lambda done, total, note="": None)
    return made.volume.hu


def test_the_memory_layout_changes_rounding_only(prepared, trained):
    eager = volume(prepared, trained)
    assert np.abs(volume(prepared, trained, channels_last=True) - eager).max() < 0.05  # HU of 2000


def test_16_bits_stay_near_float32(prepared, trained):
    eager = volume(prepared, trained)
    difference = np.abs(volume(prepared, trained, precision="bfloat16") - eager)
    assert 0 < difference.mean() < 10  # HU of 2000; 8 bits of mantissa


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_a_compiled_network_changes_rounding_only(prepared, trained):
    assert np.abs(volume(prepared, trained, compile="default") - volume(prepared, trained)).max() < 0.05  # HU of 2000


def test_float16_is_refused_on_a_cpu():
    with pytest.raises(UserError, match="precision=float16 is for GPUs"):
        tuned(nn.Identity(), SampleConfig(precision="float16"), CPU)


def test_predictions_belong_to_the_caller():
    kept = torch.zeros(2, 1)

    class Same(nn.Module):
        def forward(self, x_t, timesteps, conditions):
            return kept  # as a CUDA graph: one place for every output

    denoise = tuned(Same(), SampleConfig(), CPU)
    first = denoise(torch.ones(2, 1), None, None)
    kept += 1
    assert torch.equal(first, torch.zeros(2, 1))


def test_a_compiled_network_sees_one_shape_and_the_caller_its_own_samples(monkeypatch):
    shapes = []

    class Sum(nn.Module):
        def forward(self, x_t, timesteps, conditions):
            shapes.append([len(part) for part in (x_t, timesteps, conditions.positions, conditions.text)])
            assert conditions.masks is None and conditions.flow is None
            return x_t + timesteps[:, None] + conditions.positions + conditions.text[:, 0]

    monkeypatch.setattr(torch, "compile", lambda network, **keys: network)
    x_t, timesteps = torch.arange(4.0)[:, None], torch.tensor([10, 20, 30, 40])
    conditions = Conditions(positions=torch.rand(4, 1), text=torch.rand(4, 1, 1))
    denoise, eager = (tuned(Sum(), SampleConfig(compile=mode), CPU) for mode in ("default", "off"))
    for count in (3, 1, 3, 2, 4, 1):
        some = Conditions(positions=conditions.positions[:count], text=conditions.text[:count])
        assert torch.equal(denoise(x_t[:count], timesteps[:count], some), eager(x_t[:count], timesteps[:count], some))
    compiled, plain = shapes[0::2], shapes[1::2]
    assert [one[0] for one in compiled] == [3, 3, 3, 3, 4, 4] and [one[0] for one in plain] == [3, 1, 3, 2, 4, 1]
    assert all(len(set(one)) == 1 for one in shapes)


@pytest.mark.parametrize(
    ("channels", "side", "batch"),
    [(16, 32, 12), (64, 64, 7), (64, 128, 1), (128, 256, 1)],  # 0.07, 1.05, 4.2 and 33.6 MB: 122, 7.6, 1.9 and 0.2
)
def test_a_cpu_takes_a_batch_by_the_size_of_the_network_without_trying(channels, side, batch):
    def run(count):
        pytest.fail("nothing is run")

    assert fitting_batch(run, channels * side**2 * 4, CPU, "row") == batch


class Gpu:
    """What torch says of a GPU of so many GB, of which this process may fill a share; a network and samples fill it."""

    def __init__(self, total_gb: float, share: float = 1.0, of_others_gb: float = 0.0):
        self.total, self.cap = int(total_gb * 1e9), int(total_gb * 1e9 * share)
        self.free = self.total - int(of_others_gb * 1e9)
        self.share, self.peak = share, 0

    def run(self, count: int) -> None:
        self.peak = int((0.15 + 0.4 * count) * 1e9)
        if self.peak > min(self.cap, self.free):
            raise torch.cuda.OutOfMemoryError

    def _share(self, device: torch.device | int | None) -> float:
        if isinstance(device, torch.device) and device.index is None:
            raise ValueError(f"Expected a torch.device with a specified index or an integer, but got:{device}")
        return self.share

    def patch(self, monkeypatch) -> Gpu:
        answers = {
            "mem_get_info": (self.free, self.total),
            "memory_allocated": 0,
            "memory_reserved": 0,
            "reset_peak_memory_stats": None,
            "get_device_properties": SimpleNamespace(total_memory=self.total),
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", self._share)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        return self


@pytest.mark.parametrize(
    ("gpu", "batch"),
    [
        (Gpu(80), 64),  # more is no faster
        (Gpu(24), 32),  # (0.8 * 24 - 0.15) / 0.4 = 47
        (Gpu(24, of_others_gb=18), 8),  # (0.8 * 6 - 0.15) / 0.4 = 11
        (Gpu(80, share=6 / 80), 8),  # torch is capped to 6 GB
        (Gpu(0.9), 1),  # two do not fit
        (Gpu(1.0), 1),  # two fit, with no room beside them
    ],
)
def test_a_gpu_gets_the_batch_that_its_free_memory_holds(monkeypatch, gpu, batch):
    assert fitting_batch(gpu.patch(monkeypatch).run, 1, torch.device("cuda"), "row") == batch


def test_a_gpu_too_small_for_one_sample_is_told_with_the_numbers(monkeypatch):
    gpu = Gpu(8, of_others_gb=7.6).patch(monkeypatch)
    with pytest.raises(UserError, match=r"row: not one sample fits: 0\.4 GB of 8\.0 GB are free"):
        fitting_batch(gpu.run, 1, torch.device("cuda"), "row")


def test_operations_are_counted():
    linear = nn.Linear(5, 3)
    assert flops(lambda: linear(torch.randn(2, 5))) == 2 * 2 * 5 * 3
