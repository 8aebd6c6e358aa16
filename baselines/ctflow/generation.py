"""From a trained row of CTFlow to volumes in HU on the cases' own grids."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from baselines.ctflow.config import CTFlowExperiment, FlowSampleConfig
from baselines.ctflow.latents import encode_volume
from baselines.ctflow.models.autoencoder import SliceAutoencoder
from baselines.ctflow.models.denoiser import Denoiser
from baselines.ctflow.module import build_denoiser
from baselines.ctflow.sampling import (
    BY_BOUND,
    ClipSampler,
    Sampled,
    VolumeConditions,
    sample_next_blocks,
    sample_volume,
)
from baselines.ctflow.text import embed, embedding_shape, full_prompt, read
from baselines.ctflow.training import autoencoder_of, network_keys
from trace_lightning.anatomy.grid import Grid, resample
from trace_lightning.artifacts import Volume
from trace_lightning.data.cache import PreparedCase, volumes_folder
from trace_lightning.data.preprocess import unit_to_hu
from trace_lightning.device import peak_memory_bytes, pick_device, reset_peak_memory, within_memory
from trace_lightning.errors import UserError
from trace_lightning.fitting import load_weights
from trace_lightning.protocol import FROM_SLICE_0, Case, Generated, Progress

SLICES_AT_ONCE = 16
logger = logging.getLogger(__name__)


def load_generator(experiment: CTFlowExperiment, training_folder: Path) -> CTFlowGenerator:
    """Load the weights that `experiment` was trained to.

    Raises:
        UserError: no finished training there, or weights of another network.
    """
    weights = load_weights(training_folder, network_keys(experiment), experiment.name)
    device = torch.device(pick_device(experiment.run.device))
    autoencoder = autoencoder_of(experiment, Path(training_folder)).to(device)
    denoiser = build_for(experiment, autoencoder)
    denoiser.load_state_dict(weights)
    return CTFlowGenerator(experiment, denoiser.to(device).eval(), autoencoder, device)


def build_for(experiment: CTFlowExperiment, autoencoder: SliceAutoencoder) -> Denoiser:
    """Build the network of an experiment for the latents of an autoencoder."""
    size = experiment.data.size // autoencoder.factor
    return build_denoiser(experiment, autoencoder.channels, size, embedding_shape(experiment))


@dataclass
class CTFlowGenerator:
    """A trained row. A volume depends on its own case and seed only."""

    experiment: CTFlowExperiment
    denoiser: Denoiser
    autoencoder: SliceAutoencoder
    device: torch.device

    @property
    def num_parameters(self) -> int:
        """Parameters of the flow's network and of the autoencoder."""
        networks = (self.denoiser, self.autoencoder)
        return sum(parameter.numel() for network in networks for parameter in network.parameters())

    @torch.inference_mode()
    def generate(self, cases: Sequence[Case], seeds: Sequence[int], progress: Progress) -> Iterator[Generated]:
        """Yield a volume for each case, in order; progress counts slices."""
        total, done = sum(case.grid.shape[0] for case in cases), 0
        for case, seed in zip(cases, seeds, strict=True):

            def advance(made: int, done: int = done, own: int = case.grid.shape[0]) -> None:
                progress(done + min(made, own), total, "")  # the method's own length may be another

            with within_memory(self.device, f"sampling {case.case_id}", {}):  # clip by clip: there is nothing to lower
                yield self._generate(case, seed, advance)
            done += case.grid.shape[0]
            progress(done, total, "")

    def _generate(self, case: Case, seed: int, advance) -> Generated:
        experiment, sample = self.experiment, self.experiment.ctflow.sample
        if case.grid.shape[1:] != (experiment.data.size, experiment.data.size):
            raise UserError(
                f"{case.case_id}: grid {case.grid.shape} does not fit the model's {experiment.data.size} pixels"
            )
        reset_peak_memory(self.device)
        started = time.perf_counter()
        config = experiment.ctflow
        sampler = ClipSampler(self.denoiser, sample, config.flow, config.model.clip_length)
        sampled = self.sample(sampler, case, seed, advance)
        if sampled.ended_by == BY_BOUND:
            logger.warning(
                "%s: no end after %d slices (%d were wanted); stopped by ctflow.sample.max_clips or max_overrun",
                case.case_id,
                len(sampled.latents),
                case.grid.shape[0],
            )
        image = fit_length(self.decode(sampled.latents), case.grid, sample)
        return Generated(
            case_id=case.case_id,
            volume=Volume(unit_to_hu(image, experiment.data), case.grid),
            evaluations_per_slice=sampler.evaluations * len(sampled.starts) / case.grid.shape[0],
            seconds=time.perf_counter() - started,
            peak_memory_bytes=peak_memory_bytes(self.device),
            generated_from="each clip from the real one before it" if sample.setting == "next_block" else FROM_SLICE_0,
            details={
                "setting": sample.setting,
                "clip_starts": list(sampled.starts),
                "ended_by": sampled.ended_by,
                "own_slices": len(sampled.latents),
                "own_length_mm": round(len(sampled.latents) * case.grid.spacing_mm[0], 3),
                "wanted_length_mm": round(case.grid.shape[0] * case.grid.spacing_mm[0], 3),
            },
        )

    def sample(self, sampler: ClipSampler, case: Case, seed: int, advance) -> Sampled:
        """Return the latents of a volume at the method's own length."""
        volume, length = self.conditions(case), sampler.length
        noise = Noise(seed, tuple(volume.air.shape), length, self.device)
        setting = self.experiment.ctflow.sample.setting
        if setting == "full_body":
            return sample_volume(sampler, volume, noise, advance)
        real = self.real_latents(case)
        if setting == "gt_head":
            return sample_volume(sampler, volume, noise, advance, head=real[:length])
        return sample_next_blocks(sampler, volume, noise, advance, real)

    def conditions(self, case: Case) -> VolumeConditions:
        """Return what the sampler needs to know of a case, on the device."""
        config = self.experiment.ctflow.prompt
        prompt = full_prompt(case.prompt, case.grid, config)
        text = torch.from_numpy(read(embed(self.experiment, [prompt])[prompt], config)).to(self.device)  # (N, C)
        return VolumeConditions(text, case.grid, *self.autoencoder.ends(self.experiment.data.size))

    def real_latents(self, case: Case) -> Tensor:
        """Return the latents (D, c, h, w) of the real volume, which GT-Head and Next-Block are allowed to see."""
        prepared = PreparedCase(volumes_folder(self.experiment) / case.case_id, case.prompt)
        if not (prepared.folder / "meta.json").is_file():
            raise UserError(
                f"{prepared.folder}: {case.case_id} is not prepared; ctflow.sample.setting="
                f"{self.experiment.ctflow.sample.setting} begins with its real slices"
            )
        return torch.from_numpy(encode_volume(self.experiment, self.autoencoder, prepared)).to(self.device)

    def decode(self, latents: Tensor) -> np.ndarray:
        """Return the slices (D, H, W) float32 in [-1, 1]; with `sample.eight_bit` one of 256 values each."""
        slices = torch.cat([self.autoencoder.decode(chunk) for chunk in latents.split(SLICES_AT_ONCE)])
        slices = slices.float().clamp(-1, 1).cpu().numpy()
        return np.floor((slices + 1) * 127.5) / 127.5 - 1 if self.experiment.ctflow.sample.eight_bit else slices


class Noise:
    """The noise of a volume's slices, the same in all clips that hold a slice: where clips overlap they are alike.

    It is drawn on the CPU from the volume's own seed, whatever the device.

    Args:
        seed: of the volume.
        shape: (c, h, w) of a slice.
        length: T, slices of a clip.
        device: of the clips.
    """

    def __init__(self, seed: int, shape: tuple[int, ...], length: int, device: torch.device):
        self.generator = torch.Generator().manual_seed(seed)
        self.shape, self.length, self.device = shape, length, device
        self.slices: list[Tensor] = []

    def __call__(self, start: int) -> Tensor:
        """Return the noise (c, T, h, w) of the clip that begins at slice `start`."""
        while len(self.slices) < start + self.length:
            self.slices.append(torch.randn(self.shape, generator=self.generator))
        return torch.stack(self.slices[start : start + self.length], dim=1).to(self.device)


def fit_length(image: np.ndarray, grid: Grid, sample: FlowSampleConfig) -> np.ndarray:
    """Return (D, H, W) with the slices of `grid`, of an image with as many slices as the method chose.

    `cut_or_repeat` drops what is too much and repeats the last slice where slices lack, as the published code does
    (there to 201); `stretch` lays the image over the same millimetres.
    """
    wanted = grid.shape[0]
    if len(image) == wanted:
        return image
    if sample.length == "cut_or_repeat":
        return image[np.minimum(np.arange(wanted), len(image) - 1)]
    return resample(image, grid.resized(image.shape), grid, order=1, fill=-1.0)
