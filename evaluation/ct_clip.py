"""CT-CLIP score: how well a volume fits its report, to a network trained on chest CT. A plug-in.

Hamamci et al., CT-CLIP (CT-RATE). Its code, its text encoder (CXR-BERT, from transformers) and its weights, which are
gated and for non-commercial use (CC BY-NC-SA 4.0), are no part of this project. The user supplies them as one Python
function, `module:function`, that takes (weights, device) and returns an `Encoders`. With the authors' two packages
installed that is about twenty lines: build `CTCLIP` as their zero-shot script does, load the file, let `image` and
`text` return its two latents (`return_latents=True`). What is done here, and tested, is the preparation of the volume
and the score. Models that were trained with CT-CLIP are not judged independently by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from evaluation.vbench.dimensions import Dimension
from trace_lightning.errors import UserError

if TYPE_CHECKING:
    import torch

NAME = "ct_clip_score"
SHAPE = (240, 480, 480)  # voxels, (D, H, W)
SPACING_MM = (1.5, 0.75, 0.75)
RANGE_HU = (-1000.0, 1000.0)
SCALE_HU = 1000.0
DIMENSION = Dimension(
    NAME,
    "evaluation.ct_clip:load",
    "CT-CLIP v2 with CXR-BERT, supplied by the user",
    source="CT-CLIP (Hamamci et al.); 100 x max(0, cosine) as in the VLM3D challenge",
    weights="ct_clip",
    range=(0.0, 100.0),
    companions=(f"{NAME}_shuffled", f"{NAME}_image"),
    needs_prompt=True,
)


class Encoders(Protocol):
    """What the user's function returns."""

    def image(self, volume: torch.Tensor) -> torch.Tensor:
        """Map (1, 1, 240, 480, 480) float32 as `prepared` makes it to a latent (1, d)."""

    def text(self, prompts: list[str]) -> torch.Tensor:
        """Map n prompts to latents (n, d)."""


def prepared(hu: np.ndarray, spacing_mm: Sequence[float], air_padding: bool = True) -> torch.Tensor:
    """Return a volume as CT-CLIP's own inference code prepares it.

    Clipped to +-1000 HU, resampled trilinearly to 1.5 x 0.75 x 0.75 mm, divided by 1000, cut about its centre or padded
    with air (-1) to 240 x 480 x 480, and with its last two axes swapped: CT-CLIP's volumes are (z, x, y).

    Args:
        hu: (D, H, W), canonical LPS.
        spacing_mm: along (D, H, W).
        air_padding: False repeats a defect of the VLM3D challenge's evaluation, for comparison with its numbers: the
            -1 is laid round the volume before the division, which makes it -1 HU, nearly water.

    Returns:
        (1, 1, 240, 480, 480) float32 in [-1, 1].
    """
    import torch
    from torch.nn import functional

    volume = torch.from_numpy(np.clip(hu, *RANGE_HU, dtype=np.float32))
    size = [max(1, int(n * have / want)) for n, have, want in zip(hu.shape, spacing_mm, SPACING_MM, strict=True)]
    volume = functional.interpolate(volume[None, None], size, mode="trilinear", align_corners=False) / SCALE_HU
    missing = [want - have for have, want in zip(volume.shape[2:], SHAPE, strict=True)]
    padding = [side for m in reversed(missing) for side in (int(m / 2), m - int(m / 2))]  # negative: cut off
    outside = -1.0 if air_padding else -1.0 / SCALE_HU
    return functional.pad(volume, padding, value=outside).transpose(3, 4).contiguous()


class CtClipScore:
    """Measures of one volume: `ct_clip_score`, 100 x the cosine with its prompt, 0 where negative.

    `ct_clip_score_shuffled` is the mean over other cases' prompts, `ct_clip_score_image` the same score against the
    real volume in the prompt's place.
    """

    def __init__(self, encoders: Encoders, air_padding: bool = True):
        self.encoders, self.air_padding = encoders, air_padding

    def __call__(
        self,
        hu: np.ndarray,
        spacing_mm: Sequence[float],
        prompt: str,
        other_prompts: Sequence[str] = (),
        reference: tuple[np.ndarray, Sequence[float]] | None = None,
    ) -> dict[str, float]:
        """Score one volume.

        Args:
            hu: (D, H, W), canonical LPS.
            spacing_mm: along (D, H, W).
            prompt: its report.
            other_prompts: reports of other cases.
            reference: (hu, spacing_mm) of the real volume.

        Raises:
            ValueError: no prompt.
        """
        if not prompt:
            raise ValueError(f"{NAME} compares a volume with its prompt, and this one has none")
        latent = self._image(hu, spacing_mm)
        measures = {NAME: self._score(latent, self._text(prompt))}
        if other_prompts:
            measures[f"{NAME}_shuffled"] = float(np.mean([self._score(latent, self._text(p)) for p in other_prompts]))
        if reference is not None:
            measures[f"{NAME}_image"] = self._score(latent, self._image(*reference))
        return measures

    def _image(self, hu: np.ndarray, spacing_mm: Sequence[float]) -> torch.Tensor:
        import torch

        with torch.no_grad():
            return self.encoders.image(prepared(hu, spacing_mm, self.air_padding))[0].float().cpu()

    def _text(self, prompt: str) -> torch.Tensor:
        import torch

        with torch.no_grad():
            return self.encoders.text([prompt])[0].float().cpu()

    @staticmethod
    def _score(a: torch.Tensor, b: torch.Tensor) -> float:
        from torch.nn import functional

        return max(0.0, 100 * functional.cosine_similarity(a, b, dim=0).item())


def load(path: Path, device: str = "cpu", entry: str = "", air_padding: bool = True) -> CtClipScore:
    """Return the score with the user's encoders.

    Args:
        path: `CT-CLIP_v2.pt`, handed on to the user's function.
        device: torch's name.
        entry: `module:function` of the user's; the module must be importable.
        air_padding: as in `prepared`.

    Raises:
        UserError: no entry, or none that can be imported.
    """
    module, _, function = entry.partition(":")
    if not module or not function:
        raise UserError(
            f"{NAME} needs the user's CT-CLIP as `module:function` (see evaluation/ct_clip.py), not {entry!r}"
        )
    try:
        make = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{NAME}: {entry} cannot be imported ({error}); put its folder on PYTHONPATH") from None
    return CtClipScore(make(path, device), air_padding)
