"""OpenAI's CLIP through open_clip: its published files, its normalisation, its text features."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import open_clip
import torch
from torch.nn import functional
from torchvision.transforms.functional import InterpolationMode, center_crop, normalize, resize

from evaluation import checkpoint

SIDE = 224  # pixels
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # settings that the published archives hold as well


def load(path: Path, name: str, device: str) -> open_clip.CLIP:
    """Read a published file, a TorchScript archive, or a plain state dict of the same names; computes in float32.

    Args:
        path: the file.
        name: open_clip's name of the architecture. OpenAI's are those with `-quickgelu`.
        device: where to.

    Raises:
        UserError: not readable, or the weights of another model.
    """
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # the file is what it is
            state = dict(torch.jit.load(path, map_location="cpu").state_dict())
    except (RuntimeError, ValueError):  # no archive, or no file
        state = dict(checkpoint.read(path))
    for key in NOT_WEIGHTS:
        state.pop(key, None)
    return checkpoint.fill(open_clip.CLIP(**open_clip.get_model_config(name)), state, path, device)


def pixels(frames: torch.Tensor, antialias: bool) -> torch.Tensor:
    """Return frames as CLIP's image towers take them: shorter side to 224, bicubic, centre crop, normalised.

    Bytes are bytes again after resizing, rounded and clipped; floats keep what bicubic overshoots.

    Args:
        frames: (B, 3, H, W) uint8, or float32 in 0..255.
        antialias: smooth before making smaller. VBench does not, CLIP's own preprocessing does.

    Returns:
        (B, 3, 224, 224) float32.
    """
    resized = resize(frames, SIDE, InterpolationMode.BICUBIC, antialias=antialias)
    cropped = center_crop(resized, SIDE).float() / 255
    return normalize(cropped, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def text_features(model: open_clip.CLIP, prompts: Sequence[str]) -> torch.Tensor:
    """Return the prompts' features, of unit length, on the CPU; tokens beyond 77 are cut, the end token kept.

    Returns:
        (N, d) float32.
    """
    tokens = open_clip.get_tokenizer("ViT-L-14")(list(prompts)).to(model.positional_embedding.device)
    with torch.no_grad():
        return functional.normalize(model.encode_text(tokens), dim=-1).cpu()
