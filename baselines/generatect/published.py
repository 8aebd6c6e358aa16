"""The three published checkpoints: which of our tensors each holds, and how they take the place of a training.

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
from baselines.generatect.config import GenerateCTExperiment
from baselines.generatect.module import build_network
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


def write_published(experiment: GenerateCTExperiment, phase: str, folder: Path, identity: dict) -> None:
    """Write the weights of a published file in `folder`, as the finished training of a phase leaves its own.

    Raises:
        UserError: the file is absent or no checkpoint, or its tensors are not those of the network: names them.
    """
    path = Path(getattr(experiment.generatect, phase).published)
    network = build_network(phase, experiment, text.text_dim(experiment))
    load_part(network, path, PARTS[phase])
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    source = {"file": path.name, "file_digest": file_digest(path)}
    record = {"network": identity, "digest": digest(identity), "steps": 0, "seed": None, "published": source}
    folder.mkdir(parents=True, exist_ok=True)
    write_result(weights, folder, record)


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
