"""Overall consistency: the cosine of a volume, seen as 8 of its slices, and its prompt, to ViCLIP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch.nn import functional

from evaluation import checkpoint, openai_clip
from evaluation.vbench.viclip import CONTEXT, FRAMES, ViClip
from evaluation.vbench.video import Video, even_indices, rgb

NAME = "overall_consistency"


def tokens(prompts: Sequence[str]) -> torch.Tensor:
    """Return (N, 32) token ids of CLIP's vocabulary; longer prompts are cut, the end token kept."""
    return open_clip.get_tokenizer("ViT-L-14", context_length=CONTEXT)(list(prompts))


class OverallConsistency:
    """Raw cosines, neither clamped nor scaled.

    Measures: `overall_consistency` with the volume's own prompt, and `overall_consistency_shuffled`, the mean over
    other cases' prompts, where there are any: what a prompt that says nothing about this volume reaches.
    """

    def __init__(
        self, video_feature: Callable[[np.ndarray], torch.Tensor], text_feature: Callable[[str], torch.Tensor]
    ):
        """Take both towers.

        Args:
            video_feature: (8, H, W) uint8 -> (d,).
            text_feature: prompt -> (d,).
        """
        self.video_feature, self.text_feature = video_feature, cache(text_feature)

    def __call__(self, video: Video) -> dict[str, float]:
        """Score one volume."""
        video.require(1, NAME)
        prompt = video.require_prompt(NAME)
        feature = self.video_feature(video.frames[even_indices(len(video), FRAMES)])
        measures = {NAME: self._cosine(feature, prompt)}
        if video.other_prompts:
            measures[f"{NAME}_shuffled"] = float(np.mean([self._cosine(feature, text) for text in video.other_prompts]))
        return measures

    def _cosine(self, feature: torch.Tensor, prompt: str) -> float:
        return functional.cosine_similarity(feature, self.text_feature(prompt), dim=0).item()


def load(path: Path, device: str = "cpu") -> OverallConsistency:
    """Return overall consistency with ViCLIP-L/14 from its published file.

    Raises:
        UserError: not that file.
    """
    network = checkpoint.fill(ViClip(), checkpoint.read(path, "model"), path, device)

    @torch.no_grad()
    def video_feature(frames: np.ndarray) -> torch.Tensor:
        # VBench reads these frames as bytes, so they are bytes after resizing too.
        pixels = openai_clip.pixels(rgb(frames, device), antialias=False)
        return network.vision_encoder(pixels[None])[0].cpu()

    @torch.no_grad()
    def text_feature(prompt: str) -> torch.Tensor:
        return network.text_encoder(tokens([prompt]).to(device))[0].cpu()

    return OverallConsistency(video_feature, text_feature)
