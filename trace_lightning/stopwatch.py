"""Seconds and bytes of a few steps on this machine, from which the cost of a row is estimated."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ADAM_COPIES = 4  # weights, gradients, two moments; the average is one more


@dataclass(frozen=True)
class StepCost:
    """What one step of a training costs.

    Attributes:
        parameters: of the network.
        seconds: of a step on `batch` samples.
        saved_bytes: of activations that wait for the backward pass, on `batch` samples.
        batch: samples that were measured.
    """

    parameters: int
    seconds: float
    saved_bytes: int
    batch: int

    def training_seconds(self, num_steps: int, batch_size: int) -> float:
        """Return the seconds of a training without its loading and validation (on a CPU about 10 % more)."""
        return self.seconds / self.batch * batch_size * num_steps

    def training_bytes(self, batch_size: int) -> int:
        """Return the memory of a training in float32 with Adam and averaged weights."""
        return self.parameters * 4 * (ADAM_COPIES + 1) + self.saved_bytes // self.batch * batch_size


def step_cost(network: nn.Module, loss: Callable[[], Tensor], batch: int, device: torch.device) -> StepCost:
    """Measure a step: `loss` runs the network on `batch` samples and returns a scalar."""
    saved, weights = 0, {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        if tensor.untyped_storage().data_ptr() not in weights:
            saved += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss().backward()
    saved_once = saved
    seconds = best_seconds(lambda: loss().backward(), device)
    return StepCost(sum(parameter.numel() for parameter in network.parameters()), seconds, saved_once, batch)


def best_seconds(run: Callable[[], object], device: torch.device, repeats: int = 2) -> float:
    """Return the best wall time of `run`."""
    best = float("inf")
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best
