"""Trains GenerateCT's three phases, one after the other; killed and repeated, it continues where it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from baselines.generatect.config import PHASES, GenerateCTExperiment, need_places, of_phase
from trace_lightning.artifacts import digest, read_json, sweep_temporary, write_array
from trace_lightning.fitting import RECORD, fit, is_trained, load_weights, write_result
from trace_lightning.protocol import Progress

if TYPE_CHECKING:
    from baselines.generatect.models.ctvit import CTViT
    from baselines.generatect.module import Phase
    from baselines.generatect.views import EncodedView
    from trace_lightning.data.cache import PreparedCase


def train(experiment: GenerateCTExperiment, folder: Path, progress: Progress) -> None:
    """Train all phases in folders below `folder`; go on from what lies there.

    Leaves the weights of the three networks in one `model.safetensors`, and `training.json`.

    Raises:
        UserError: a folder holds a checkpoint of another experiment, or a loss is not finite.
    """
    folder = Path(folder)
    if is_trained(folder):
        return
    train_tokenizer(experiment, folder / "tokenizer", progress)
    train_transformer(experiment, folder / "transformer", progress, folder / "tokenizer")
    train_super_resolution(experiment, folder / "super_resolution", progress, folder / "tokenizer")
    join_phases(experiment, folder)


def train_tokenizer(experiment: GenerateCTExperiment, folder: Path, progress: Progress) -> None:
    """Train CT-ViT, or take the published weights where `tokenizer.published` names them."""
    from baselines.generatect import text
    from baselines.generatect.module import TokenizerModule
    from baselines.generatect.published import write_published
    from baselines.generatect.views import PhaseDataModule, TokenizerDataset

    keys = phase_keys(experiment, "tokenizer", folder)
    if is_trained(folder):
        return
    if experiment.generatect.tokenizer.published is not None:
        return write_published(experiment, "tokenizer", folder, keys)
    own = of_phase(experiment, "tokenizer")
    datamodule = PhaseDataModule(own, None, TokenizerDataset)
    datamodule.setup("fit")
    build = partial(TokenizerModule, own, text.text_dim(experiment), datamodule.num_steps)
    unclipped = replace(own, train=replace(own.train, grad_clip=None))  # the module clips: it has two optimisers
    noted, group = _noted(progress, "tokenizer"), "generatect.tokenizer.train"
    fit(unclipped, build, datamodule, folder, keys, noted, group=group, part="tokenizer")


def train_transformer(experiment: GenerateCTExperiment, folder: Path, progress: Progress, tokenizer: Path) -> None:
    """Train the token transformer on the tokens that the finished training in `tokenizer` gives."""
    from baselines.generatect.module import TransformerModule
    from baselines.generatect.views import TransformerDataset

    _train_encoded(experiment, "transformer", TransformerModule, TransformerDataset, folder, progress, tokenizer)


def train_super_resolution(experiment: GenerateCTExperiment, folder: Path, progress: Progress, tokenizer: Path) -> None:
    """Train the super-resolution on the reconstructions that the finished training in `tokenizer` gives."""
    from baselines.generatect.module import SuperResolutionModule
    from baselines.generatect.views import SuperResolutionDataset

    _train_encoded(
        experiment, "super_resolution", SuperResolutionModule, SuperResolutionDataset, folder, progress, tokenizer
    )


def join_phases(experiment: GenerateCTExperiment, folder: Path) -> None:
    """Write the weights of the phases below `folder` as one file, and the record that vouches for it."""
    weights, records, keys = {}, {}, network_keys(experiment, *PHASES)
    for phase in PHASES:
        own = load_weights(folder / phase, phase_keys(experiment, phase, folder / "tokenizer"), experiment.name)
        weights |= {f"{phase}.{name}": value for name, value in own.items()}
        records[phase] = read_json(folder / phase / RECORD)
    steps = sum(record["steps"] for record in records.values())
    peak = max(record.get("peak_memory_bytes") or 0 for record in records.values())  # none where weights are published
    record = {"network": keys, "digest": digest(keys), "steps": steps, "seed": experiment.seed, "phases": records}
    record |= {"peak_memory_bytes": peak or None}
    write_result(weights, folder, record)


def network_keys(experiment: GenerateCTExperiment, *phases: str) -> dict:
    """Return the keys that the weights of `phases` belong to; weights are refused under any others."""
    from baselines.generatect import text

    config = experiment.generatect
    keys = {
        "method": experiment.method,
        "size": experiment.data.size,
        "window_hu": [experiment.data.hu_min, experiment.data.hu_max],
        "squeezed_to": config.num_slices if config.squeeze else None,
        "factor": config.super_resolution.factor,
    }
    if set(phases) != {"tokenizer"}:
        keys["text"] = text.identity(experiment)
    for phase in phases:
        keys[phase] = asdict(getattr(config, phase))
        del keys[phase]["train"], keys[phase]["published"]
    return keys


def phase_keys(experiment: GenerateCTExperiment, phase: str, tokenizer: Path) -> dict:
    """Return the keys of one phase's training; those after the first belong to one tokenizer's weights."""
    if phase == "tokenizer":
        return network_keys(experiment, phase)
    return network_keys(experiment, "tokenizer", phase) | {
        "tokenizer_weights": read_json(tokenizer / RECORD)["weights_digest"]
    }


def encode_cases(
    tokenizer: CTViT,
    cases: Sequence[PreparedCase],
    experiment: GenerateCTExperiment,
    folder: Path,
    progress: Progress,
) -> None:
    """Write tokens and reconstruction of each case; what is there already is left alone.

    Raises:
        UserError: a case has more tokens than the transformer has places.
    """
    import numpy as np
    import torch

    from baselines.generatect.views import coarse_volume, reconstruction_path, slice_positions, tokens_path

    device = next(tokenizer.parameters()).device
    for done, case in enumerate(cases):
        progress(done, len(cases), case.case_id)
        positions = slice_positions(case.grid.shape[0], experiment.generatect)
        need_places(case.case_id, len(positions), experiment)
        if reconstruction_path(folder, case.case_id).is_file():  # written last
            continue
        frames = torch.from_numpy(coarse_volume(case, positions, experiment)).to(device)[None, None]
        with torch.inference_mode():
            tokens = tokenizer.tokenize(frames)
            reconstruction = tokenizer.decode_indices(tokens)[0, 0].clamp(-1, 1)
        write_array(tokens_path(folder, case.case_id), tokens[0].cpu().numpy().astype(np.int32))
        write_array(reconstruction_path(folder, case.case_id), reconstruction.half().cpu().numpy())


def _train_encoded(
    experiment: GenerateCTExperiment,
    phase: str,
    module: type[Phase],
    view: type[EncodedView],
    folder: Path,
    progress: Progress,
    tokenizer: Path,
) -> None:
    """Encode the training and validation cases, then train a phase on them; or take its published weights."""
    from baselines.generatect import text
    from baselines.generatect.module import build_network
    from baselines.generatect.published import write_published
    from baselines.generatect.views import PhaseDataModule
    from trace_lightning.data.cache import open_prepared
    from trace_lightning.data.text import num_truncated
    from trace_lightning.device import pick_device

    if is_trained(folder):
        return
    keys = phase_keys(experiment, phase, tokenizer)
    if getattr(experiment.generatect, phase).published is not None:
        return write_published(experiment, phase, folder, keys)
    own, text_dim = of_phase(experiment, phase), text.text_dim(experiment)
    prepared = open_prepared(experiment)
    network = build_network("tokenizer", experiment, text_dim)
    network.load_state_dict(load_weights(tokenizer, phase_keys(experiment, "tokenizer", tokenizer), experiment.name))
    network.to(pick_device(experiment.run.device)).eval()
    encoded = tokenizer / f"encoded_{keys['tokenizer_weights']}"
    sweep_temporary(tokenizer)
    cases = prepared.cases("train") + prepared.cases("val")
    encode_cases(network, cases, experiment, encoded, _noted(progress, "encoding"))
    del network

    embedded = text.embed_prompts(prepared.prompts, experiment)
    datamodule = PhaseDataModule(own, embedded, partial(view, encoded=encoded))
    datamodule.setup("fit")
    build = partial(module, own, text_dim, datamodule.num_steps)
    notes = {"prompts": len(embedded), "prompts_truncated": num_truncated(embedded.values())}
    noted, group = _noted(progress, phase), f"generatect.{phase}.train"
    fit(own, build, datamodule, folder, keys, noted, notes=notes, group=group, part=phase)


def _noted(progress: Progress, phase: str) -> Progress:
    """Return a progress that names the phase."""
    return lambda done, total, note="": progress(done, total, f"{phase} {note}".strip())
