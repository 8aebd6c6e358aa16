"""Subject and background consistency: how like its predecessor, and how like the first, each slice is to a network.

With features f_t of unit length, slice t >= 1 scores (max(0, f_{t-1} f_t) + max(0, f_0 f_t)) / 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate
from torchvision.transforms.functional import InterpolationMode, normalize, resize

from evaluation import checkpoint, openai_clip
from evaluation.vbench.video import Embed, Video, embedded, rgb

SIDE, PATCH = 224, 16  # pixels
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Consistency:
    """A consistency over the features of one network.

    Measures: `name` (mean over T - 1 slices), its two halves `name_previous` and `name_first`, and `name_pairs`, T - 1.
    """

    def __init__(self, name: str, embed: Embed):
        self.name, self.embed = name, embed

    def __call__(self, video: Video) -> dict[str, float]:
        """Score one volume."""
        video.require(2, self.name)
        features = embedded(video.frames, self.embed).double()
        previous = (features[:-1] * features[1:]).sum(1).clamp(min=0).mean().item()
        first = (features[1:] @ features[0]).clamp(min=0).mean().item()
        return {
            self.name: (previous + first) / 2,
            f"{self.name}_previous": previous,
            f"{self.name}_first": first,
            f"{self.name}_pairs": len(features) - 1,
        }


def pooled(name: str, measures: Sequence[Mapping[str, float]]) -> float:
    """Return what VBench prints for a set of videos when it runs as one process: the mean over all slices of all.

    Long volumes weigh more in it than in the plain mean over volumes, which VBench prints for the subject when it runs
    as several processes. The two are equal where all volumes have the same number of slices.
    """
    pairs = np.array([measure[f"{name}_pairs"] for measure in measures], float)
    return float(pairs @ [measure[name] for measure in measures] / pairs.sum())


def load_subject(path: Path, device: str = "cpu") -> Consistency:
    """Return subject consistency, with DINO ViT-B/16 from the file that Facebook published.

    Raises:
        UserError: not that file.
    """
    import timm

    network = timm.create_model("vit_base_patch16_224.dino", num_classes=0, dynamic_img_size=True)
    checkpoint.fill(network, checkpoint.read(path), path, device)
    return Consistency("subject_consistency", lambda frames: dino_features(network, dino_pixels(rgb(frames, device))))


def dino_features(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return DINO's feature of the whole image, as Facebook's code does for images of any shape.

    Other shapes than 14 x 14 patches need other positions; timm would interpolate them with antialiasing.

    Args:
        network: timm's ViT with `dynamic_img_size`.
        images: (B, 3, h, w) as `dino_pixels` makes them.

    Returns:
        (B, d) float32.
    """
    patches = network.patch_embed(images)  # (B, rows, columns, d)
    whole = (network.cls_token + network.pos_embed[:, :1]).expand(len(patches), -1, -1)
    grid = network.pos_embed[:, 1:].unflatten(1, (SIDE // PATCH, SIDE // PATCH))
    if patches.shape[1:] != grid.shape[1:]:
        # DINO adds 0.1 patch so that rounding does not lose a row, and scales by that.
        scales = [(n + 0.1) / (SIDE // PATCH) for n in patches.shape[1:3]]
        grid = interpolate(grid.movedim(-1, 1), scale_factor=scales, mode="bicubic").movedim(1, -1)
    tokens = torch.cat([whole, (patches + grid).flatten(1, 2)], dim=1)
    return network.norm(network.blocks(tokens))[:, 0]


def dino_pixels(frames: torch.Tensor) -> torch.Tensor:
    """Return frames as VBench gives them to DINO: shorter side to 224, bilinear without antialiasing, no crop.

    Args:
        frames: (B, 3, H, W) uint8.

    Returns:
        (B, 3, h, w) float32, normalised. Where the longer side is no multiple of 16, the rest that fills no patch is
        cut off, as a strided convolution does by itself.
    """
    resized = resize(frames.float(), SIDE, InterpolationMode.BILINEAR, antialias=False)
    height, width = (side - side % PATCH for side in resized.shape[-2:])
    return normalize(resized[..., :height, :width] / 255, IMAGENET_MEAN, IMAGENET_STD)


def load_background(path: Path, device: str = "cpu") -> Consistency:
    """Return background consistency, with CLIP ViT-B/32 from the file that OpenAI published.

    Computed in float32 on every device; VBench takes float16 on a GPU.

    Raises:
        UserError: not that file.
    """
    model = openai_clip.load(path, "ViT-B-32-quickgelu", device)
    return Consistency(
        "background_consistency",
        lambda frames: model.encode_image(openai_clip.pixels(rgb(frames, device).float(), antialias=False)),
    )
