"""What to look at before a long training: the autoencoder alone, one volume by heart, a short volume clip by clip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from baselines.ctflow.config import CTFlowExperiment
from baselines.ctflow.generation import CTFlowGenerator, load_generator
from baselines.ctflow.latents import SLICES_AT_ONCE, encode_volume
from baselines.ctflow.models.autoencoder import SliceAutoencoder
from baselines.ctflow.training import train
from trace_lightning.data.cache import PreparedCase, open_prepared
from trace_lightning.data.preprocess import hu_to_unit
from trace_lightning.protocol import Case, Generated, Progress

MS_SSIM_PIXELS = 176  # 16 x 11: below, the coarsest of the five scales is smaller than the window


def reconstruction(
    autoencoder: SliceAutoencoder, volumes: Iterable[tuple[str, np.ndarray]], total: int, progress: Progress
) -> list[dict]:
    """Measure how much of a volume an autoencoder keeps, slice by slice.

    Args:
        autoencoder: on the device to work on.
        volumes: name and slices (D, H, W) float32 in [-1, 1].
        total: volumes there are.
        progress: counts volumes.

    Returns:
        For each volume `case_id`, `slices`, `psnr_db`, `ssim` and `ms_ssim`: means over slices; the last is None below
        176 pixels, where it is not defined.
    """
    rows = []
    for done, (name, image) in enumerate(volumes):
        progress(done, total, name)
        chunks = torch.from_numpy(image).to(autoencoder.device).split(SLICES_AT_ONCE)
        scores = [slice_scores(autoencoder.decode(autoencoder.encode(chunk)), chunk) for chunk in chunks]
        means = {key: _mean([chunk[key] for chunk in scores]) for key in scores[0]}
        rows.append({"case_id": name, "slices": len(image), **means})
    return rows


def slice_scores(found: Tensor, real: Tensor) -> dict[str, Tensor | None]:
    """Return PSNR in dB, SSIM and MS-SSIM of each slice; both (N, H, W), `real` in [-1, 1]."""
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure,
        structural_similarity_index_measure,
    )

    found, real = ((images.clamp(-1, 1)[:, None] + 1) / 2 for images in (found, real))  # (N, 1, H, W) in [0, 1]
    settings = {"data_range": 1.0, "reduction": "none"}
    large = min(real.shape[-2:]) >= MS_SSIM_PIXELS
    return {
        "psnr_db": -10 * torch.log10((found - real).square().mean(dim=(1, 2, 3)).clamp_min(1e-12)),
        "ssim": structural_similarity_index_measure(found, real, **settings).reshape(-1),
        "ms_ssim": multiscale_structural_similarity_index_measure(found, real, **settings).reshape(-1)
        if large
        else None,
    }


def one_volume(experiment: CTFlowExperiment) -> CTFlowExperiment:
    """Return the experiment with one training volume, its clips those that Next-Block asks for."""
    config = experiment.ctflow
    return replace(
        experiment,
        data=replace(experiment.data, num_train_patients=1, num_val_patients=0),
        ctflow=replace(config, train=replace(config.train, aligned_share=1.0)),
    )


def overfit(experiment: CTFlowExperiment, folder: Path, seed: int, progress: Progress) -> dict:
    """Train on one volume and generate it again: can the network learn anything at all?

    Args:
        experiment: of `one_volume`, prepared.
        folder: of the training; an unfinished one is continued.
        seed: of the starting noise.
        progress: told of steps, then of slices.

    Returns:
        `next_block_psnr_db`, against the autoencoder's own `autoencoder_psnr_db`, which it cannot pass; and what
        `autoregressive` says of the same case.
    """
    train(experiment, folder, progress)
    (prepared,) = open_prepared(experiment).cases("train")
    generator = load_generator(experiment, folder)
    case, real = as_case(prepared), hu_to_unit(np.asarray(prepared.image, np.float32), experiment.data)
    latents = torch.from_numpy(encode_volume(experiment, generator.autoencoder, prepared)).to(generator.device)
    teacher = with_setting(generator, "next_block")
    (made,) = teacher.generate([case], [seed], progress)
    return {
        "autoencoder_psnr_db": psnr_db(generator.decode(latents), real),
        "next_block_psnr_db": psnr_db(hu_to_unit(made.volume.hu, experiment.data), real),
        **autoregressive(generator, [case], [seed], progress)[0],
    }


def autoregressive(
    generator: CTFlowGenerator, cases: Sequence[Case], seeds: Sequence[int], progress: Progress
) -> list[dict]:
    """Generate volumes clip by clip (Full-Body): do they end by themselves, and do the clips fit together?

    Returns:
        For each case `case_id`, `ended_by`, `own_length_mm`, `wanted_length_mm` and `border_ratio`.
    """
    free = with_setting(generator, "full_body")
    return [
        {
            "case_id": made.case_id,
            **{key: made.details[key] for key in ("ended_by", "own_length_mm", "wanted_length_mm")},
            "border_ratio": border_ratio(made, free.experiment.ctflow.sample.overlap),
        }
        for made in free.generate(cases, seeds, progress)
    ]


def border_ratio(made: Generated, overlap: int) -> float:
    """Return the mean |difference| of neighbouring slices at clip borders over that elsewhere; NaN without a border.

    A border lies where the slices of one clip begin to be mixed with another's, and where they are the other's alone.
    """
    differences = np.abs(np.diff(made.volume.hu, axis=0)).mean(axis=(1, 2))  # (D - 1,)
    scale = len(made.volume.hu) / made.details["own_slices"]  # where the volume was stretched
    places = {round((start + at) * scale) - 1 for start in made.details["clip_starts"] if start for at in (0, overlap)}
    at_border = np.isin(np.arange(len(differences)), list(places))
    if at_border.all() or not at_border.any():
        return float("nan")
    return float(differences[at_border].mean() / differences[~at_border].mean())


def mean_row(rows: Sequence[dict]) -> dict:
    """Return the mean of each number that rows of a check have; what is no number, or undefined, is left out."""
    found: dict = {"case_id": "mean"}
    for key in list(rows[0])[1:]:
        known = [row[key] for row in rows if isinstance(row[key], int | float) and np.isfinite(row[key])]
        found[key] = float(np.mean(known)) if known else None
    return found


def psnr_db(found: np.ndarray, real: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB of arrays in [-1, 1]."""
    return float(10 * np.log10(4 / np.mean((found - real) ** 2)))


def as_case(prepared: PreparedCase) -> Case:
    """Return what a method is told of a prepared volume."""
    return Case(prepared.case_id, prepared.prompt, prepared.grid)


def with_setting(generator: CTFlowGenerator, setting: str) -> CTFlowGenerator:
    """Return the generator with another `sample.setting`."""
    config = generator.experiment.ctflow
    changed = replace(config, sample=replace(config.sample, setting=setting))
    return replace(generator, experiment=replace(generator.experiment, ctflow=changed))


def _mean(chunks: list[Tensor | None]) -> float | None:
    return None if chunks[0] is None else float(torch.cat(chunks).mean())
