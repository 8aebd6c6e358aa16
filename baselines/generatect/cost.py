"""What a row will cost, measured: a step of each phase on this machine, scaled up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.generatect import text
from baselines.generatect.config import PHASES, GenerateCTExperiment, coarse_size, of_phase
from baselines.generatect.module import SuperResolutionModule, TokenizerModule, TransformerModule
from baselines.generatect.sampling import sample_slices, sample_tokens
from baselines.generatect.views import slice_positions
from trace_lightning.device import pick_device
from trace_lightning.stopwatch import StepCost, best_seconds, step_cost

TOKENS_OF_REPORT = 32


def estimate(experiment: GenerateCTExperiment, num_volumes: int, num_slices: int) -> dict:
    """Return an estimate of time and memory; encoding, loading and validation come on top.

    Args:
        experiment: the resolved keys.
        num_volumes: that are trained on.
        num_slices: of a typical volume.

    Returns:
        `parameters`, `train_seconds`, `generate_seconds_per_slice`, `memory_bytes` (of training).

    Raises:
        UserError: weights cannot be had.
    """
    device = torch.device(pick_device(experiment.run.device))
    typical = _Typical(experiment, num_slices, device)
    costs, seconds = {}, 0.0
    samples = {"tokenizer": num_volumes, "transformer": num_volumes, "super_resolution": num_volumes * num_slices}
    for phase in PHASES:
        settings = getattr(experiment.generatect, phase)
        costs[phase] = getattr(typical, phase)()
        if settings.published is None:
            steps = settings.train.max_steps or settings.train.epochs * max(
                1, samples[phase] // settings.train.batch_size
            )
            seconds += costs[phase].training_seconds(steps, settings.train.batch_size)
    return {
        "parameters": sum(cost.parameters for cost in costs.values()),
        "train_seconds": seconds,
        "generate_seconds_per_slice": typical.generation_seconds(),
        "memory_bytes": max(
            cost.training_bytes(getattr(experiment.generatect, phase).train.batch_size) for phase, cost in costs.items()
        ),
    }


@dataclass
class _Typical:
    """The three phases on random volumes of a typical length."""

    experiment: GenerateCTExperiment
    num_slices: int
    device: torch.device

    def __post_init__(self) -> None:
        config, size = self.experiment.generatect, coarse_size(self.experiment)
        self.slices = len(slice_positions(self.num_slices, config))
        side, along = size // config.tokenizer.patch, config.tokenizer.slice_patch
        self.token_shape = (1 + (self.slices - 1) // along, side, side)
        self.text_dim = text.text_dim(self.experiment)
        self.report = torch.randn(1, TOKENS_OF_REPORT, self.text_dim, device=self.device)
        self.generator = torch.Generator(device=self.device)

    def tokenizer(self) -> StepCost:
        """Measure CT-ViT; a step of its discriminator costs about as much."""
        slices, size = self.experiment.generatect.num_slices, coarse_size(self.experiment)
        frames = torch.zeros(1, 1, slices, size, size, device=self.device)
        module = self._module(TokenizerModule, "tokenizer")
        return step_cost(module, lambda: module.objective(frames, self.generator), 1, self.device)

    def transformer(self) -> StepCost:
        """Measure MaskGIT on a volume's tokens."""
        module = self._module(TransformerModule, "transformer")
        tokens = torch.zeros(1, *self.token_shape, dtype=torch.long, device=self.device)
        return step_cost(module, lambda: self._objective(module, {"tokens": tokens}), 1, self.device)

    def super_resolution(self) -> StepCost:
        """Measure the diffusion of a slice."""
        module, size = self._module(SuperResolutionModule, "super_resolution"), self.experiment.data.size
        small = coarse_size(self.experiment)
        slices = {"frames": torch.zeros(1, 1, size, size), "coarse": torch.zeros(1, 1, small, small)}
        batch = {name: value.to(self.device) for name, value in slices.items()}
        return step_cost(module, lambda: self._objective(module, batch), 1, self.device)

    def generation_seconds(self) -> float:
        """Return the seconds that a finished slice takes."""
        sample, size = self.experiment.generatect.sample, self.experiment.data.size
        transformer = self._module(TransformerModule, "transformer").network.eval()
        unet = self._module(SuperResolutionModule, "super_resolution").network.eval()
        coarse = torch.zeros(1, coarse_size(self.experiment), coarse_size(self.experiment), device=self.device)
        report = self.report[0]
        with torch.inference_mode():
            tokens = best_seconds(
                lambda: sample_tokens(transformer, self.token_shape, report, sample, 0), self.device, 1
            )
            a_slice = best_seconds(
                lambda: sample_slices(unet, coarse, report, sample, size, 0, lambda count: None), self.device, 1
            )
        return a_slice + tokens / self.num_slices

    def _module(self, build, phase: str):
        return build(of_phase(self.experiment, phase), self.text_dim, num_steps=1).to(self.device)

    def _objective(self, module, batch: dict) -> Tensor:
        present = torch.ones(1, dtype=torch.bool, device=self.device)
        return module.objective(batch | {"text": self.report}, present, self.generator)
