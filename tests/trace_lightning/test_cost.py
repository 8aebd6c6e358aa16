"""Steps from epochs, and what a measured step says of a training."""

from __future__ import annotations

import torch
from torch import nn

from experiments.load import load
from trace_lightning.cost import _num_steps, estimate
from trace_lightning.stopwatch import StepCost, step_cost


def test_steps_follow_from_epochs_pairs_and_batch():
    ours = load("ours", "ct_rate", ["data.root=/ct"]).experiment
    # 300 slices have ceil(300/k) pairs of skip k
    assert _num_steps(ours, 100, 300) == 300 * (100 * (300 + 150 + 75) // 28)
    assert _num_steps(load("ours").experiment, 100, 300) == load("ours").experiment.train.max_steps


def test_a_step_is_scaled_by_batch_and_steps():
    cost = StepCost(parameters=10, seconds=0.5, saved_bytes=100, batch=2)
    assert cost.training_seconds(num_steps=8, batch_size=4) == 8.0
    assert cost.training_bytes(batch_size=4) == 10 * 4 * 5 + 200


def test_what_waits_for_the_backward_pass_is_counted_without_the_weights():
    network = nn.Linear(5, 3, bias=False)
    x = torch.randn(2, 5)
    cost = step_cost(network, lambda: network(x).square().sum(), 2, torch.device("cpu"))
    assert cost.parameters == 15
    assert cost.saved_bytes == 2 * 5 * 4 + 2 * 3 * 4  # the input, and the output for its square
    assert cost.seconds > 0


def test_the_estimate_of_a_row_is_positive():
    found = estimate(load("ours", "smoke").experiment, 6, 16)
    assert all(value > 0 for value in found.values())
