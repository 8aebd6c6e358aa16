"""Optical flow by RAFT (Teed and Deng, ECCV 2020): torchvision's network, torchvision's or the authors' weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trace_lightning.artifacts import file_digest
from trace_lightning.config import DataConfig
from trace_lightning.errors import UserError

if TYPE_CHECKING:
    import torch

HUB = "hub"
HUB_WEIGHTS = {"raft_large": "C_T_SKHT_V2", "raft_small": "C_T_V2"}  # torchvision's best for each
STRIDE, SMALLEST = 8, 128  # the correlation pyramid needs 16 features along an axis
BATCH_PIXELS = 4 * 512 * 512  # of all first slices in a batch; about 1 GB for raft_large

# The authors' names -> torchvision's; torchvision's own pass unchanged.
RENAMED = (
    (r"^module\.", ""),
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"_encoder\.conv1\.", "_encoder.convnormrelu.0."),
    (r"_encoder\.norm1\.", "_encoder.convnormrelu.1."),
    (r"_encoder\.conv2\.", "_encoder.conv."),
    (r"(layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."),
    (r"(layer\d\.\d)\.norm(\d)\.", r"\1.convnormrelu\2.1."),
    (r"^update_block\.encoder\.convc(\d)\.", r"update_block.motion_encoder.convcorr\1.0."),
    (r"^update_block\.encoder\.convf(\d)\.", r"update_block.motion_encoder.convflow\1.0."),
    (r"^update_block\.encoder\.conv\.", "update_block.motion_encoder.conv.0."),
    (r"^update_block\.gru\.conv([zrq])2\.", r"update_block.recurrent_block.convgru2.conv\1."),
    (r"^update_block\.gru\.conv([zrq])1?\.", r"update_block.recurrent_block.convgru1.conv\1."),
    (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
)


def raft_flow(
    slices: np.ndarray, pairs: Sequence[tuple[int, int]], data: DataConfig, device: str = "cpu"
) -> Iterator[np.ndarray]:
    """Yield the flow of each pair (i, j) of slices, computed in batches.

    Args:
        slices: (D, H, W) float32 in [-1, 1].
        pairs: in the order wanted.
        data: names the network and its weights.
        device: `auto`, `cpu` or `cuda`.

    Yields:
        (2, H, W) float32, pixels along W and along H: slice i at p is found in slice j at p + f(p).

    Raises:
        UserError: the weights cannot be had; random ones never stand in for them.
    """
    import torch

    from trace_lightning.device import pick_device

    network = _network(data.flow_model, data.flow_weights, weights_stamp(data), pick_device(device))
    _, height, width = slices.shape
    at_once = max(1, BATCH_PIXELS // (height * width))
    for first in range(0, len(pairs), at_once):
        i, j = zip(*pairs[first : first + at_once], strict=True)
        with torch.inference_mode():
            # One grey channel stands for the three colours.
            a, b = (_padded(torch.from_numpy(slices[list(of_one)])) for of_one in (i, j))
            flows = network(*(image[:, None].expand(-1, 3, -1, -1).to(_device(network)) for image in (a, b)))[-1]
        yield from flows[:, :, :height, :width].float().cpu().numpy()


def weights_stamp(data: DataConfig) -> str | None:
    """Return what identifies the weights, wherever they lie: a name of torchvision's, or a digest of the file.

    None without RAFT, or without the file.
    """
    if data.flow_source != "raft":
        return None
    if data.flow_weights == HUB:
        return f"{data.flow_model} {HUB_WEIGHTS[data.flow_model]}"
    path = Path(data.flow_weights)
    return f"{data.flow_model} {file_digest(path)}" if path.is_file() else None


def torchvision_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return RAFT's weights under torchvision's names, whether they come under those or under the authors'."""
    renamed = {}
    for name, value in weights.items():
        if name.replace(".norm3.", ".downsample.1.") != name and name.replace(".norm3.", ".downsample.1.") in weights:
            continue  # the authors list the shortcut's normalisation twice
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


@lru_cache(maxsize=1)
def _network(model: str, weights: str, stamp: str | None, device: str) -> torch.nn.Module:
    """Return the network with its weights; `stamp` is there so that a replaced file is read again."""
    from torchvision.models import get_model

    if weights == HUB:
        try:
            network = get_model(model, weights=HUB_WEIGHTS[model])
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"data.flow_weights=hub: torchvision's weights of {model} cannot be downloaded ({error}). {_HOW}"
            ) from None
    else:
        network = get_model(model, weights=None)
        _load(network, model, Path(weights))
    return network.to(device).eval()


_HOW = (
    "Give data.flow_weights=PATH of a file from torchvision (download.pytorch.org/models/raft_large_C_T_SKHT_V2-*.pth) "
    "or from the authors (raft-things.pth, raft-small.pth of princeton-vl/RAFT; data.flow_model says which of both "
    "sizes it is), or data.flow_source=dis, which needs no weights"
)


def _load(network: torch.nn.Module, model: str, path: Path) -> None:
    import pickle

    import torch

    if not path.is_file():
        raise UserError(f"data.flow_weights={path}: no such file. {_HOW}")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"data.flow_weights={path}: cannot be read as PyTorch weights ({first_line}). {_HOW}") from None
    if not isinstance(weights, dict):
        raise UserError(f"data.flow_weights={path}: holds a {type(weights).__name__}, not named weights. {_HOW}")
    try:
        network.load_state_dict(torchvision_names(weights))
    except RuntimeError as error:
        raise UserError(f"data.flow_weights={path}: not the weights of data.flow_model={model}. {error}") from None


def _padded(images: torch.Tensor) -> torch.Tensor:
    """Return (B, H, W) images continued by their last row and column up to a size that RAFT takes."""
    import torch

    missing = [max(SMALLEST, -(-size // STRIDE) * STRIDE) - size for size in images.shape[1:]]
    return torch.nn.functional.pad(images, (0, missing[1], 0, missing[0]), mode="replicate")


def _device(network: torch.nn.Module) -> torch.device:
    return next(network.parameters()).device
