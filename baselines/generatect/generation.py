"""From a trained row to volumes: tokens, coarse slices, fine slices, HU on the case's grid."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from baselines.generatect import text
from baselines.generatect.config import PHASES, GenerateCTExperiment, need_places
from baselines.generatect.models.ctvit import CTViT
from baselines.generatect.models.maskgit import MaskGit
from baselines.generatect.models.super_resolution import SuperResolutionUNet
from baselines.generatect.module import build_network
from baselines.generatect.sampling import sample_slices, sample_tokens
from baselines.generatect.training import network_keys
from baselines.generatect.views import slice_positions
from trace_lightning.anatomy.grid import resample
from trace_lightning.artifacts import Volume
from trace_lightning.data.preprocess import unit_to_hu
from trace_lightning.device import peak_memory_bytes, pick_device, reset_peak_memory, within_memory
from trace_lightning.errors import UserError
from trace_lightning.fitting import load_weights
from trace_lightning.protocol import ALL_AT_ONCE, Case, Generated, Progress


def load_generator(experiment: GenerateCTExperiment, training_folder: Path) -> GenerateCTGenerator:
    """Load the weights that `experiment` was trained to.

    Raises:
        UserError: no finished training there, or weights of another network.
    """
    weights = load_weights(training_folder, network_keys(experiment, *PHASES), experiment.name)
    device, text_dim = torch.device(pick_device(experiment.run.device)), text.text_dim(experiment)
    networks = {phase: build_network(phase, experiment, text_dim) for phase in PHASES}
    for phase, network in networks.items():
        own = {name.removeprefix(f"{phase}."): w for name, w in weights.items() if name.startswith(f"{phase}.")}
        network.load_state_dict(own)
        network.to(device).eval()
    return GenerateCTGenerator(experiment, **networks, device=device)


@dataclass
class GenerateCTGenerator:
    """A trained row. A volume depends on its own case and seed only."""

    experiment: GenerateCTExperiment
    tokenizer: CTViT
    transformer: MaskGit
    super_resolution: SuperResolutionUNet
    device: torch.device

    @property
    def num_parameters(self) -> int:
        """Parameters of the three networks."""
        networks = (self.tokenizer, self.transformer, self.super_resolution)
        return sum(parameter.numel() for network in networks for parameter in network.parameters())

    @torch.inference_mode()
    def generate(self, cases: Sequence[Case], seeds: Sequence[int], progress: Progress) -> Iterator[Generated]:
        """Yield a volume for each case, in order; progress counts the model's slices."""
        config = self.experiment.generatect
        total = sum(len(slice_positions(case.grid.shape[0], config)) for case in cases)
        done = 0

        def advance(slices: int) -> None:
            nonlocal done
            done += slices
            progress(done, total, "")

        for case, seed in zip(cases, seeds, strict=True):
            keys = {"generatect.sample.slices_abreast": config.sample.slices_abreast}
            with within_memory(self.device, f"sampling {case.case_id}", keys):
                yield self._generate(case, seed, advance)

    def _generate(self, case: Case, seed: int, advance) -> Generated:
        data, config = self.experiment.data, self.experiment.generatect
        depth, *in_plane = case.grid.shape
        if in_plane != [data.size, data.size]:
            raise UserError(f"{case.case_id}: grid {case.grid.shape} does not fit the model's {data.size} pixels")
        slices = len(slice_positions(depth, config))
        need_places(case.case_id, slices, self.experiment)
        reset_peak_memory(self.device)
        started = time.perf_counter()
        reading = self._text(case.prompt)
        coarse = self._coarse(slices, reading, seed)
        fine = sample_slices(self.super_resolution, coarse, reading, config.sample, data.size, seed, advance)
        hu = unit_to_hu(fine.float().cpu().numpy(), data)
        seconds = time.perf_counter() - started
        if config.squeeze:  # stretched over the case's field of view again
            own = case.grid.resized((slices, *in_plane))
            hu = resample(hu, own, case.grid, order=1, fill=data.hu_min)
        else:
            hu = hu[:depth]
        return Generated(
            case_id=case.case_id,
            volume=Volume(hu, case.grid),
            evaluations_per_slice=self.evaluations(slices) / depth,
            seconds=seconds,
            peak_memory_bytes=peak_memory_bytes(self.device),
            generated_from=ALL_AT_ONCE,
            details={"model_slices": slices, "text": text.describe(self.experiment)},
        )

    def evaluations(self, slices: int) -> int:
        """Return the network evaluations of a volume with as many slices of the model's."""
        sample = self.experiment.generatect.sample
        of_tokens = sample.token_steps * (1 if sample.token_guidance_scale == 1 else 2) + 1  # and the decoder
        return of_tokens + slices * sample.slice_steps * (1 if sample.slice_guidance_scale == 1 else 2)

    def _coarse(self, slices: int, reading: Tensor, seed: int) -> Tensor:
        """Return (F, h, w) in [-1, 1]: the decoded tokens."""
        side = self.tokenizer.grid_size
        shape = (self.tokenizer.num_token_slices(slices), side, side)
        tokens = sample_tokens(self.transformer, shape, reading, self.experiment.generatect.sample, seed)
        return self.tokenizer.decode_indices(tokens[None])[0, 0].clamp(-1, 1)

    def _text(self, prompt: str) -> Tensor:
        embedded = text.embed_prompts([prompt], self.experiment)
        return torch.from_numpy(text.read(embedded[prompt])).to(self.device)  # (C, D)
