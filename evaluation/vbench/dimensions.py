"""What each metric on frames is: its network, its weights, its range and where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.weights import WEIGHTS

if TYPE_CHECKING:
    from evaluation.vbench.video import Scorer

VBENCH = "VBench (Huang et al., CVPR 2024)"
BY_HAND = "needs no weights: values worked out by hand, and VBench's own code on the same frames"


@dataclass(frozen=True)
class Dimension:
    """One metric on frames.

    Attributes:
        name: key of its headline measure; further ones begin or end with it.
        entry: `module:function` that makes its scorer; takes (path, device), or nothing where there are no weights.
        network: what it asks, for readers.
        source: who defined it.
        weights: key of `evaluation.weights.WEIGHTS`; None without weights.
        range: least and greatest value. Published tables print it times 100.
        companions: its other measures.
        needs_prompt: compares with the volume's text.
        needs_extra: the optional extra of this package that it needs, empty for none.
        least_frames: fewer slices are a ValueError.
        per_slice: VBench, run as one process, averages over all slices of all videos (`consistency.pooled`), not over
            videos.
        verified: against which published values it was checked; empty where only on random weights.
    """

    name: str
    entry: str
    network: str
    source: str = VBENCH
    weights: str | None = None
    range: tuple[float, float] = (0.0, 1.0)
    companions: tuple[str, ...] = ()
    needs_prompt: bool = False
    needs_extra: str = ""
    least_frames: int = 1
    per_slice: bool = False
    verified: str = ""

    @property
    def higher_is_better(self) -> bool:
        """All of them are agreements or opinions."""
        return True

    @property
    def licence(self) -> str:
        """Of the weights, as their publisher states it."""
        return WEIGHTS[self.weights].licence if self.weights else "none needed"

    def load(self, path: Path | None = None, device: str = "cpu") -> Scorer:
        """Return its scorer, the network in memory.

        Args:
            path: file of the weights, as `evaluation.weights.find` gives it.
            device: torch's name.

        Raises:
            UserError: the file or an optional package is missing or not what it should be.
        """
        module, _, function = self.entry.partition(":")
        make: Callable = getattr(import_module(module), function)
        return make(path, device) if self.weights else make()


def _consistency(name: str, function: str, network: str, weights: str) -> Dimension:
    companions = (f"{name}_previous", f"{name}_first", f"{name}_pairs")
    entry = f"evaluation.vbench.consistency:{function}"
    return Dimension(name, entry, network, weights=weights, companions=companions, least_frames=2, per_slice=True)


DIMENSIONS = {
    dimension.name: dimension
    for dimension in (
        _consistency("subject_consistency", "load_subject", "DINO ViT-B/16", "dino_vitb16"),
        _consistency("background_consistency", "load_background", "CLIP ViT-B/32 (OpenAI)", "clip_vitb32"),
        Dimension(
            "temporal_flickering",
            "evaluation.vbench.flickering:load",
            "none",
            companions=("body_flickering",),
            least_frames=2,
            verified=BY_HAND,
        ),
        Dimension(
            "motion_smoothness",
            "evaluation.vbench.smoothness:load_motion",
            "AMT-S",
            weights="amt_s",
            companions=("body_smoothness",),
            least_frames=3,
        ),
        Dimension(
            "linear_smoothness",
            "evaluation.vbench.smoothness:load_linear",
            "none: linear interpolation",
            source="VBench's motion smoothness with another interpolator",
            companions=("body_linear_smoothness",),
            least_frames=3,
            verified="needs no weights: values worked out by hand",
        ),
        Dimension(
            "imaging_quality",
            "evaluation.vbench.imaging:load",
            "MUSIQ, SPAQ (pyiqa)",
            weights="musiq_spaq",
            needs_extra="musiq",
        ),
        Dimension(
            "overall_consistency",
            "evaluation.vbench.overall:load",
            "ViCLIP-L/14",
            weights="viclip",
            range=(-1.0, 1.0),
            companions=("overall_consistency_shuffled",),
            needs_prompt=True,
        ),
    )
}
