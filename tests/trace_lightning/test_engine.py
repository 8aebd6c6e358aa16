"""Precision, memory layout and compilation change speed, and volumes within stated bounds."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from trace_lightning.config import SampleConfig
from trace_lightning.data import cache
from trace_lightning.engine import fitting_batch, flops, tuned
from trace_lightning.errors import UserError
from trace_lightning.generation import load_generator

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
    kept = torch.zeros(2)

    class Same(nn.Module):
        def forward(self, x_t, timesteps, conditions):
            return kept  # as a CUDA graph: one place for every output

    denoise = tuned(Same(), SampleConfig(), CPU)
    first = denoise(None, None, None)
    kept += 1
    assert torch.equal(first, torch.zeros(2))


def test_a_cpu_takes_a_fixed_batch_without_trying():
    assert fitting_batch(lambda count: pytest.fail("nothing is run"), CPU, "row") == 8


def test_operations_are_counted():
    linear = nn.Linear(5, 3)
    assert flops(lambda: linear(torch.randn(2, 5))) == 2 * 2 * 5 * 3
