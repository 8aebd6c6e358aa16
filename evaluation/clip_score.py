"""CLIP score: how well the slices fit the volume's prompt, to CLIP ViT-L/14.

As torchmetrics' CLIPScore with its default network, per volume: the mean over slices of 100 x cosine, 0 where that is
negative. Papers on CT do not say which slices they take; here all, or an even choice.
The score of real volumes hardly exceeds that of bad ones, so a control stands beside it: the same slices with the
prompts of other cases.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation.vbench.dimensions import Dimension
from evaluation.vbench.video import Embed, Video, embedded, even_indices, rgb

if TYPE_CHECKING:
    import torch

NAME = "clip_score"
DIMENSION = Dimension(
    NAME,
    "evaluation.clip_score:load",
    "CLIP ViT-L/14 (OpenAI)",
    source="CLIPScore (Hessel et al., EMNLP 2021), as torchmetrics computes it",
    weights="clip_vitl14",
    range=(0.0, 100.0),
    companions=("clip_score_shuffled", "clip_score_slices"),
    needs_prompt=True,
    code=("evaluation.openai_clip",),
)


class ClipScore:
    """Measures: `clip_score`; `clip_score_shuffled`, the mean over other cases' prompts; `clip_score_slices`."""

    def __init__(self, embed: Embed, text_feature: Callable[[str], torch.Tensor], slices: int | None = None):
        """Take both towers.

        Args:
            embed: (B, H, W) uint8 -> (B, d).
            text_feature: prompt -> (d,), of unit length.
            slices: how many slices, evenly chosen; None: all.
        """
        self.embed, self.text_feature, self.slices = embed, cache(text_feature), slices

    def __call__(self, video: Video) -> dict[str, float]:
        """Score one volume."""
        video.require(1, NAME)
        prompt = video.require_prompt(NAME)
        chosen = len(video) if self.slices is None else min(self.slices, len(video))
        mean = embedded(video.frames[even_indices(len(video), chosen)], self.embed).mean(dim=0)
        measures = {NAME: self._score(mean, prompt), f"{NAME}_slices": chosen}
        if video.other_prompts:
            measures[f"{NAME}_shuffled"] = float(np.mean([self._score(mean, text) for text in video.other_prompts]))
        return measures

    def _score(self, mean: torch.Tensor, prompt: str) -> float:
        """Return 100 x the mean cosine, which is the cosine's numerator with the mean of the slices' unit features."""
        return max(0.0, 100 * float(mean @ self.text_feature(prompt)))


def load(path: Path, device: str = "cpu", slices: int | None = None) -> ClipScore:
    """Return CLIP score with the file that OpenAI published.

    Raises:
        UserError: not that file.
    """
    from evaluation import openai_clip

    model = openai_clip.load(path, "ViT-L-14-quickgelu", device)
    return ClipScore(
        lambda frames: model.encode_image(openai_clip.pixels(rgb(frames, device), antialias=True)),
        lambda prompt: openai_clip.text_features(model, [prompt])[0],
        slices,
    )
