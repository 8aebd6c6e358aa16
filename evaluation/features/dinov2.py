"""DINOv2 ViT-L/14 (Oquab et al. 2023, arXiv 2304.07193) through timm: the class token, 1024 features at 224 x 224.

Distances on it follow people's judgement better than those on Inception (Stein et al. 2023, arXiv 2306.04675).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from evaluation.features.network import GreyImages, load_strictly, read_state
from trace_lightning.errors import UserError

ARCHITECTURE = "vit_large_patch14_dinov2"
SIZE = 224
OFFSET = 0.1  # Facebook's interpolation of positions adds it to the number of patches a side


def load(path: Path, architecture: str = ARCHITECTURE) -> nn.Module:
    """Read Facebook's state dict into timm's network of the same parameter names.

    Args:
        path: `dinov2_vitl14_pretrain.pth`.
        architecture: timm's name.
    """
    import timm

    state = read_state(path)
    state.pop("mask_token", None)  # used in pretraining only
    if "pos_embed" not in state:
        raise UserError(f"{path}: not the weights of DINOv2: pos_embed is missing")
    module = timm.create_model(architecture, pretrained=False, num_classes=0, img_size=SIZE)
    state["pos_embed"] = resized_positions(state["pos_embed"], module.patch_embed.grid_size[0])
    load_strictly(module, state, path)
    return GreyImages(module, size=SIZE, mode="bicubic")


def resized_positions(positions: Tensor, side: int) -> Tensor:
    """Interpolate the positions (1, 1 + n, d) of a square of patches to side x side, as Facebook's code does."""
    first, patches = positions[:, :1], positions[:, 1:]
    old = round(patches.shape[1] ** 0.5)
    if old == side:
        return positions
    square = patches.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    scale = (side + OFFSET) / old
    square = functional.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([first, square.permute(0, 2, 3, 1).reshape(1, side * side, -1)], dim=1)
