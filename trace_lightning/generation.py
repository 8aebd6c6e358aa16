"""From a trained row to volumes: for the cases of the test split, or for one mask of a user's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trace_lightning.anatomy.grid import Grid, resample
from trace_lightning.artifacts import Volume
from trace_lightning.config import Experiment, SampleConfig, uses_text
from trace_lightning.data.flow import volume_mask_flow
from trace_lightning.data.masks import class_map
from trace_lightning.data.preprocess import model_grid, unit_to_hu
from trace_lightning.data.text import embed_prompts, text_dim
from trace_lightning.device import peak_memory_bytes, pick_device, reset_peak_memory, within_memory
from trace_lightning.engine import fitting_batch, flops, matmul_flops_per_second, tuned
from trace_lightning.errors import UserError
from trace_lightning.fitting import load_weights
from trace_lightning.mask_bank import draw_labels
from trace_lightning.models.denoiser import Denoiser, num_frames
from trace_lightning.module import build_denoiser
from trace_lightning.protocol import ALL_AT_ONCE, FROM_SLICE_0, Case, Generated, Progress
from trace_lightning.random_inputs import random_inputs
from trace_lightning.sampling import brickwork, independent, overlap, sequential
from trace_lightning.sampling.noise import InitialNoise
from trace_lightning.sampling.solver import Solver
from trace_lightning.sampling.volume import VolumeConditions
from trace_lightning.training import network_keys


@dataclass(frozen=True)
class Sampler:
    """A way from a trained network to volumes.

    Attributes:
        sample: (solver, volumes, noises, settings, advance) -> for each volume (N, H, W) in [-1, 1].
        evaluations_per_slice: (solver, settings, N, F) -> network evaluations, a pair counted once.
        network_calls: (solver, settings, all N, F) -> calls of the network, one after the other.
        generated_from: where along z it begins.
    """

    sample: Callable[..., list[Tensor]]
    evaluations_per_slice: Callable[[Solver, SampleConfig, int, int], float]
    network_calls: Callable[[Solver, SampleConfig, Sequence[int], int], int]
    generated_from: str


SAMPLERS = {
    name: Sampler(sample, module.evaluations_per_slice, module.network_calls, begins)
    for name, module, sample, begins in (
        ("independent", independent, independent.sample_independent, ALL_AT_ONCE),
        ("overlap", overlap, overlap.sample_overlap, FROM_SLICE_0),
        ("brickwork", brickwork, brickwork.sample_brickwork, ALL_AT_ONCE),
        ("sequential_clean", sequential, sequential.sample_sequential, "the lowest slice of each segment, upwards"),
    )
}


def sample_settings(experiment: Experiment) -> SampleConfig:
    """Return the sampler's keys, `strides` filled in: those that the network was trained on unless fewer are named."""
    return replace(experiment.sample, strides=experiment.sample.strides or experiment.data.skips)


def load_generator(experiment: Experiment, training_folder: Path) -> TraceGenerator:
    """Load the weights that `experiment` was trained to.

    Raises:
        UserError: no finished training there, or weights of another network.
    """
    weights = load_weights(training_folder, network_keys(experiment), experiment.name)
    device = torch.device(pick_device(experiment.run.device))
    denoiser = build_denoiser(experiment, text_dim(experiment.text))
    denoiser.load_state_dict(weights)
    return TraceGenerator(experiment, denoiser.to(device).eval(), device)


@dataclass
class TraceGenerator:
    """A trained row. A volume depends on its own case and seed only."""

    experiment: Experiment
    denoiser: Denoiser
    device: torch.device

    def __post_init__(self) -> None:
        """Set the network up as `sample` wants it run."""
        self.denoise = tuned(self.denoiser, self.experiment.sample, self.device)
        self.frames = num_frames(self.experiment.model)
        self.sampler = SAMPLERS[self.experiment.sample.sampler]

    @cached_property
    def settings(self) -> SampleConfig:
        """The sampler's keys, those filled in that are left to the row and to the device."""
        settings = sample_settings(self.experiment)
        if settings.tile_batch is not None or settings.sampler != "brickwork":
            return settings
        first_level_bytes = self.denoiser.first_level_values * torch.float32.itemsize
        fitting = fitting_batch(self._evaluate, first_level_bytes, self.device, self.experiment.name)
        return replace(settings, tile_batch=fitting)

    @property
    def num_parameters(self) -> int:
        """Parameters of the network."""
        return sum(parameter.numel() for parameter in self.denoiser.parameters())

    @torch.inference_mode()
    def generate(self, cases: Sequence[Case], seeds: Sequence[int], progress: Progress) -> Iterator[Generated]:
        """Yield a volume for each case, in order, `sample.volumes_abreast` at a time; progress counts slices."""
        abreast = self.experiment.sample.volumes_abreast
        total, done = sum(case.grid.shape[0] for case in cases), 0
        for at in range(0, len(cases), abreast):
            group = cases[at : at + abreast]

            def advance(slices: int) -> None:
                nonlocal done
                done += slices
                progress(done, total, "")

            with within_memory(self.device, f"sampling {group[0].case_id}", self._memory_keys()):
                yield from self._generate_abreast(group, seeds[at : at + abreast], advance)

    def _generate_abreast(self, cases: Sequence[Case], seeds: Sequence[int], advance) -> Iterator[Generated]:
        data, sample = self.experiment.data, self.settings
        for case in cases:
            if case.grid.shape[1:] != (data.size, data.size):
                raise UserError(f"{case.case_id}: grid {case.grid.shape} does not fit the model's {data.size} pixels")
        reset_peak_memory(self.device)
        started = time.perf_counter()
        solver = self._solver()
        volumes = [self.conditions(case, seed) for case, seed in zip(cases, seeds, strict=True)]
        noises = [InitialNoise(seed, (self.frames, data.size, data.size), sample.initial_noise) for seed in seeds]
        slices = self.sampler.sample(solver, volumes, noises, sample, advance)
        images = [of_volume.float().cpu().numpy() for of_volume in slices]
        seconds = (time.perf_counter() - started) / len(cases)
        calls = self.network_calls([case.grid.shape[0] for case in cases])
        for case, image in zip(cases, images, strict=True):
            yield Generated(
                case_id=case.case_id,
                volume=Volume(unit_to_hu(image, data), case.grid),
                evaluations_per_slice=self.evaluations_per_slice(case.grid.shape[0]),
                seconds=seconds,
                peak_memory_bytes=peak_memory_bytes(self.device),
                generated_from=self.sampler.generated_from,
                details={"volumes_abreast": len(cases), "network_calls": calls},
            )

    def evaluations_per_slice(self, num_slices: int) -> float:
        """Return network evaluations per finished slice of a volume, a pair counted once."""
        return self.sampler.evaluations_per_slice(self._solver(), self.settings, num_slices, self.frames)

    def network_calls(self, lengths: Sequence[int]) -> int:
        """Return how many times the network is called, one call after the other, for volumes of these lengths."""
        abreast = self.settings.volumes_abreast
        groups = [lengths[at : at + abreast] for at in range(0, len(lengths), abreast)]
        return sum(self.sampler.network_calls(self._solver(), self.settings, group, self.frames) for group in groups)

    def flop_share(self, evaluations_per_second: float) -> float:
        """Return the share of the device's matrix products' speed that so many evaluations a second take."""
        inputs = random_inputs(self.experiment, 1, self.device)
        with torch.inference_mode():
            each = flops(lambda: self.denoiser(*inputs))
        ceiling = matmul_flops_per_second(self.device, self.settings.precision)
        return each * evaluations_per_second / ceiling

    def _solver(self) -> Solver:
        return Solver(self.denoise, self.experiment.diffusion, self.settings)

    def _evaluate(self, batch: int) -> None:
        eager = tuned(self.denoiser, replace(self.experiment.sample, compile="off"), self.device)
        with torch.inference_mode():
            eager(*random_inputs(self.experiment, batch, self.device))

    def conditions(self, case: Case, seed: int) -> VolumeConditions:
        """Return what the samplers need to know of a case, on the device; `seed` draws its mask where it has none."""
        experiment, model = self.experiment, self.experiment.model
        num_slices = case.grid.shape[0]
        if not model.anatomical_guidance:
            return VolumeConditions(num_slices, self.device)
        labels = case.labels
        if labels is None and experiment.sample.masks_from == "bank":
            labels = draw_labels(experiment, case.grid, seed)
        if labels is None:
            raise UserError(f"{case.case_id}: {experiment.name} needs a mask")
        classes = class_map(labels, model.num_mask_classes)  # (D, H, W)
        flow = {}
        if model.flow:  # between masks: at inference there are no frames to take it from
            flow = {k: torch.from_numpy(self._mask_flow(classes, k)).to(self.device) for k in self._distances()}
        return VolumeConditions(
            num_slices,
            self.device,
            torch.from_numpy(classes.astype(np.uint8)).to(self.device),
            model.num_mask_classes,
            model.mask_encoding,
            self._text(case.prompt).to(self.device),
            flow,
        )

    def _memory_keys(self) -> dict[str, int | None]:
        """Return the keys that the memory of sampling goes with."""
        sample = self.settings
        tiles = sample.tile_batch if sample.sampler == "brickwork" else None
        return {"sample.volumes_abreast": sample.volumes_abreast, "sample.tile_batch": tiles}

    def _distances(self) -> list[int]:
        """Return the distances of the pairs that the sampler draws."""
        sample = self.settings
        return sample.strides if sample.sampler == "brickwork" else [1]

    def _mask_flow(self, classes: np.ndarray, skip: int) -> np.ndarray:
        data, model = self.experiment.data, self.experiment.model
        return volume_mask_flow(classes, model.num_mask_classes, data.flow_stride, skip, torch.get_num_threads())

    def _text(self, prompt: str) -> Tensor:
        embedded = embed_prompts([prompt], self.experiment.text, Path(self.experiment.run.cache_dir))
        return torch.from_numpy(embedded[prompt].tokens)  # (T, C)


def generate_from_mask(
    experiment: Experiment,
    training_folder: Path,
    labels: np.ndarray,
    grid: Grid,
    prompt: str,
    seed: int,
    num_slices: int | None,
    progress: Progress,
) -> tuple[Volume, Generated]:
    """Generate a CT for any mask, returned on the mask's grid.

    Args:
        experiment: the run's keys.
        training_folder: the run's weights.
        labels: (D, H, W) VISTA3D ids, canonical.
        grid: of the mask.
        prompt: the report; "" for none.
        seed: of the starting noise.
        num_slices: slices the model makes over the mask's extent; None: as many as the mask has.
        progress: told of slices.

    Returns:
        The volume on the mask's grid, and what was generated on the model's grid.
    """
    if labels.max() > 132 or not labels.any():
        raise UserError(f"the mask holds VISTA3D ids 1..132 and some structure; found values {np.unique(labels)[:12]}")
    data = experiment.data
    own = model_grid(grid, data)
    target = own if num_slices is None else own.resized((num_slices, *own.shape[1:]))
    case = Case("volume", prompt, target, resample(labels, grid, target, order=0, fill=0))
    generator = load_generator(experiment, training_folder)
    (generated,) = generator.generate([case], [seed], progress)
    hu = resample(generated.volume.hu, target, grid, order=1, fill=data.hu_min)
    return Volume(hu, grid), generated


def text_note(experiment: Experiment) -> str:
    """Return which text tower a volume was made with, for its provenance."""
    from trace_lightning.data.text import describe

    return describe(experiment.text) if uses_text(experiment) else "no text"
