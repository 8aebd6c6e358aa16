"""The three published checkpoints: which of our tensors each holds, and how they become a trained row.

`ctvit_pretrained.pt` is a state dict of CT-ViT with its discriminator and VGG-16 (`discr.`, `vgg.`);
`transformer_pretrained.pt` one of the token transformer (`maskgit.`) with a copy of CT-ViT (`ctvit.`);
`superres_pretrained.pt` a trainer's file: `model` (`unets.1.`) and its moving average, `ema` (`1.ema_model.`), which
inference uses. The names were read from the published code; the files themselves were never seen here.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from baselines.generatect import text
from baselines.generatect.config import PHASES, GenerateCTExperiment
from baselines.generatect.module import build_super_resolution, build_tokenizer, build_transformer
from baselines.generatect.training import network_keys
from trace_lightning.artifacts import digest, file_digest
from trace_lightning.errors import UserError
from trace_lightning.fitting import write_result

State = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """Where a network lies in a published file.

    Attributes:
        key: entry of the file that is the state dict; "" where the file is the state dict itself.
        prefix: of the network's names in it.
        also: prefixes of what else the state dict holds and we leave aside.
    """

    key: str
    prefix: str
    also: tuple[str, ...]


PARTS = {
    "tokenizer": Part("", "", ("discr.", "vgg.")),
    "transformer": Part("", "maskgit.", ("ctvit.",)),
    "super_resolution": Part("ema", "1.ema_model.", ("0.", "1.online_model.", "1.initted", "1.step")),
}
DISCRIMINATOR = Part("", "discr.", ("",))  # in the tokenizer's file, whatever else that holds


def import_published(experiment: GenerateCTExperiment, files: dict[str, Path], folder: Path) -> None:
    """Write the weights of the three files as the finished training of `experiment`.

    Args:
        experiment: with the published sizes.
        files: phase -> checkpoint; each of `config.PHASES`.
        folder: of the training, as `training.train` leaves it.

    Raises:
        UserError: a file is absent or no checkpoint, or its tensors are not those of the network: names them.
    """
    absent = [phase for phase in PHASES if phase not in files]
    if absent:
        raise UserError(f"published weights: no file is given for {', '.join(absent)}; all of {PHASES} are needed")
    text_dim = text.text_dim(experiment)
    networks = {
        "tokenizer": build_tokenizer(experiment),
        "transformer": build_transformer(experiment, text_dim),
        "super_resolution": build_super_resolution(experiment, text_dim),
    }
    weights: State = {}
    for phase, network in networks.items():
        load_part(network, Path(files[phase]), PARTS[phase])
        weights |= {f"{phase}.{name}": value.contiguous() for name, value in network.state_dict().items()}
    keys = network_keys(experiment, *PHASES)
    source = {phase: [Path(path).name, file_digest(path)] for phase, path in files.items()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    record = {"network": keys, "digest": digest(keys), "steps": None, "seed": None, "published": source}
    write_result(weights, Path(folder), record)


def load_part(network: nn.Module, path: Path, part: Part) -> None:
    """Load a network from a published file; every tensor must be there, and nothing unexplained beside it.

    Raises:
        UserError: names the file and what is missing, unexpected, or of another shape.
    """
    state = _read(path, part.key)

    def is_own(name: str) -> bool:
        return name.startswith(part.prefix) and bool(part.prefix or not name.startswith(part.also))

    own = {name.removeprefix(part.prefix): value for name, value in state.items() if is_own(name)}
    strange = [name for name in state if not is_own(name) and not name.startswith(part.also)]
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    problems = {
        "missing": [part.prefix + name for name in wanted if name not in own],
        "unexpected": strange + [part.prefix + name for name in own if name not in wanted],
        "of another shape": [
            f"{part.prefix}{name} {tuple(own[name].shape)} (here {shape})"
            for name, shape in wanted.items()
            if name in own and tuple(own[name].shape) != shape
        ],
    }
    told = [f"{len(names)} {what}: {_some(names)}" for what, names in problems.items() if names]
    if told:
        raise UserError(f"{path}: not the weights of {type(network).__name__} with these keys; {'; '.join(told)}")
    network.load_state_dict(own)


def _read(path: Path, key: str) -> State:
    """Return the state dict in a file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a checkpoint of tensors ({error})") from None
    state = content.get(key) if key and isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        where = f"its entry {key!r}" if key else "it"
        raise UserError(f"{path}: {where} is not a state dict (names of tensors); is it the file that was published?")
    return state


def _some(names: list[str], shown: int = 6) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
