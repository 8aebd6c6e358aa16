"""Trains CTFlow: its autoencoder where it has one of its own, then the flow on latents that are encoded once."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

from baselines.ctflow.config import CTFlowExperiment, trained_by
from trace_lightning.artifacts import atomic_path, digest
from trace_lightning.fitting import fit, is_trained, load_weights, write_result
from trace_lightning.protocol import Progress

AUTOENCODER = "autoencoder"  # folder of the own autoencoder below that of the training
DIFFUSERS = "diffusers"  # folder of the same in diffusers' format, its latents scaled
SCALING_SLICES = 512  # that shift and scale of the own latents are measured on


def train(experiment: CTFlowExperiment, folder: Path, progress: Progress) -> None:
    """Train `experiment` in `folder`; resume where an earlier call was stopped.

    Leaves `model.safetensors` (averaged weights of the flow's network), `training.json`, the curves, and for an own
    autoencoder the same in `autoencoder/`. With `model.published` the published weights take the place of a training.

    Raises:
        UserError: weights or a text tower cannot be had, or the loss is not finite.
    """
    import torch

    from baselines.ctflow.latents import LatentClips, LatentDataModule, encode_cases, read_ends
    from baselines.ctflow.module import CTFlowModule
    from baselines.ctflow.text import embed, embedding_shape, full_prompt
    from trace_lightning.data.cache import open_prepared
    from trace_lightning.data.text import num_truncated
    from trace_lightning.device import pick_device

    folder, config = Path(folder), experiment.ctflow
    if is_trained(folder):
        return
    if config.model.published is not None:
        return _take_published(experiment, folder)
    if config.autoencoder.source == "own":
        train_autoencoder(experiment, folder / AUTOENCODER, _named(progress, "autoencoder"))
    autoencoder = autoencoder_of(experiment, folder).to(torch.device(pick_device(experiment.run.device)))
    prepared = open_prepared(experiment)
    cases = prepared.cases("train") + prepared.cases("val")
    latents = encode_cases(experiment, autoencoder, cases, _named(progress, "latents"))
    text = embed(experiment, [full_prompt(case.prompt, case.grid, config.prompt) for case in cases])

    own = trained_by(experiment, config.train)
    datamodule = LatentDataModule(own, text, partial(LatentClips, latents))
    datamodule.setup("fit")
    black, _ = read_ends(latents)
    fit(
        own,
        lambda: CTFlowModule(own, black.shape, embedding_shape(experiment), datamodule.num_steps),
        datamodule,
        folder,
        network_keys(experiment),
        _named(progress, "flow"),
        notes={"prompts": len(text), "prompts_truncated": num_truncated(text.values())},
        group="ctflow.train",
    )


def train_autoencoder(experiment: CTFlowExperiment, folder: Path, progress: Progress) -> None:
    """Train the small autoencoder on the training slices, and keep it in diffusers' format with scaled latents."""
    import torch

    from baselines.ctflow.models.autoencoder import build_own
    from baselines.ctflow.module import AutoencoderModule
    from trace_lightning.data.datamodule import CTRateDataModule
    from trace_lightning.data.views import SliceDataset
    from trace_lightning.device import pick_device

    if (folder / DIFFUSERS).is_dir():
        return
    own = trained_by(experiment, experiment.ctflow.autoencoder.own)
    datamodule = CTRateDataModule(own, None, SliceDataset)
    datamodule.setup("fit")
    identity = autoencoder_keys(experiment)
    fit(
        own,
        lambda: AutoencoderModule(own, datamodule.num_steps),
        datamodule,
        folder,
        identity,
        progress,
        group="ctflow.autoencoder.own",
        part=AUTOENCODER,
    )

    network = build_own(own.train).to(torch.device(pick_device(experiment.run.device))).eval()
    network.load_state_dict(load_weights(folder, identity, experiment.name))
    shift, deviation = _latent_statistics(experiment, network, datamodule)
    network.register_to_config(shift_factor=shift, scaling_factor=1 / deviation)
    with atomic_path(folder / DIFFUSERS) as temporary:
        network.save_pretrained(temporary)


def autoencoder_of(experiment: CTFlowExperiment, folder: Path):
    """Return the autoencoder of a training, a `SliceAutoencoder`."""
    from baselines.ctflow.models.autoencoder import load_autoencoder

    return load_autoencoder(experiment.ctflow.autoencoder, folder / AUTOENCODER / DIFFUSERS)


def network_keys(experiment: CTFlowExperiment) -> dict:
    """Return the keys that a network's weights belong to; weights are refused under any others."""
    config, data = experiment.ctflow, experiment.data
    text = asdict(experiment.text) if config.prompt.tower == "open_clip" else None
    return {
        "method": experiment.method,
        "size": data.size,
        "window_hu": [data.hu_min, data.hu_max],
        "autoencoder": asdict(config.autoencoder),
        "prompt": asdict(config.prompt),
        "text": text,
        "model": asdict(config.model),
        "flow": asdict(config.flow),
    }


def autoencoder_keys(experiment: CTFlowExperiment) -> dict:
    """Return the keys that the own autoencoder's weights belong to."""
    keys = network_keys(experiment)
    return {key: keys[key] for key in ("size", "window_hu", "autoencoder")}


def _latent_statistics(experiment: CTFlowExperiment, network, datamodule) -> tuple[float, float]:
    """Return mean and standard deviation of the latents of up to 512 training slices, evenly chosen."""
    import numpy as np
    import torch

    from baselines.ctflow.models.autoencoder import SliceAutoencoder
    from trace_lightning.data.preprocess import hu_to_unit
    from trace_lightning.data.views import Draw

    view = datamodule.train_view
    chosen = np.unique(np.linspace(0, len(view) - 1, SCALING_SLICES).astype(int))
    autoencoder = SliceAutoencoder(network, experiment.ctflow.autoencoder.image_range)
    slices = (torch.from_numpy(view[Draw(0, int(n))]["hu"]).to(autoencoder.device) for n in chosen)
    latents = torch.cat([autoencoder.encode(hu_to_unit(hu.float(), experiment.data)) for hu in slices])
    return float(latents.mean()), float(latents.std())


def _take_published(experiment: CTFlowExperiment, folder: Path) -> None:
    """Leave the published weights as the result of a training of no steps."""
    from baselines.ctflow.generation import build_for
    from baselines.ctflow.models.published import load_published

    denoiser = build_for(experiment, autoencoder_of(experiment, folder))
    load_published(denoiser.stdit, experiment.ctflow.model.published)
    folder.mkdir(parents=True, exist_ok=True)
    identity = network_keys(experiment)
    record = {
        "network": identity,
        "digest": digest(identity),
        "steps": 0,
        "published": experiment.ctflow.model.published,
    }
    write_result(denoiser.state_dict(), folder, record)


def _named(progress: Progress, phase: str) -> Progress:
    return lambda done, total, note="": progress(done, total, f"{phase} {note}".strip())
