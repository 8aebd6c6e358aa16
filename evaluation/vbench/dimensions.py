"""What each metric on frames is: its network, its weights, its range and where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.weights import WEIGHTS, find, why_absent

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
        package: optional package that it needs, as it is imported; empty for none.
        extra: the extra of this project that brings `package`.
        least_frames: fewer slices are a ValueError.
        per_slice: VBench, run as one process, averages over all slices of all videos (`consistency.pooled`), not over
            videos.
        code: modules besides its entry's whose change changes its measures.
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
    package: str = ""
    extra: str = ""
    least_frames: int = 1
    per_slice: bool = False
    verified: str = ""
    code: tuple[str, ...] = ()

    @property
    def higher_is_better(self) -> bool:
        """All of them are agreements or opinions."""
        return True

    @property
    def licence(self) -> str:
        """Of the weights, as their publisher states it."""
        return WEIGHTS[self.weights].licence if self.weights else "none needed"

    def why_absent(self, below: Path) -> str | None:
        """Say what is missing and how it is got, or return None where all is there.

        Args:
            below: the weights folder.
        """
        if self.package and find_spec(self.package) is None:
            return f"needs the package {self.package} ({self.licence}): pip install 'trace-lightning[{self.extra}]'"
        if self.weights and find(self.weights, below) is None:
            return why_absent(self.weights, below)
        return None

    def load(self, path: Path | None = None, device: str = "cpu", **options: object) -> Scorer:
        """Return its scorer, the network in memory.

        Args:
            path: file of the weights, as `evaluation.weights.find` gives it.
            device: torch's name.
            **options: of its entry, as `slices` of the CLIP score.

        Raises:
            UserError: not the weights that it should be.
        """
        module, _, function = self.entry.partition(":")
        make: Callable = getattr(import_module(module), function)
        return make(path, device, **options) if self.weights else make(**options)


def _consistency(name: str, function: str, network: str, weights: str, *code: str) -> Dimension:
    companions = (f"{name}_previous", f"{name}_first", f"{name}_pairs")
    entry = f"evaluation.vbench.consistency:{function}"
    return Dimension(
        name, entry, network, weights=weights, companions=companions, least_frames=2, per_slice=True, code=code
    )


CLIP = "evaluation.openai_clip"
STEPS = "evaluation.vbench.flickering"  # what the measures inside the body share
DIMENSIONS = {
    dimension.name: dimension
    for dimension in (
        _consistency("subject_consistency", "load_subject", "DINO ViT-B/16", "dino_vitb16"),
        _consistency("background_consistency", "load_background", "CLIP ViT-B/32 (OpenAI)", "clip_vitb32", CLIP),
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
            "evaluation.vbench.motion:load",
            "AMT-S",
            weights="amt_s",
            companions=("body_smoothness",),
            least_frames=3,
            code=("evaluation.vbench.amt", "evaluation.vbench.smoothness", STEPS),
        ),
        Dimension(
            "linear_smoothness",
            "evaluation.vbench.smoothness:load",
            "none: linear interpolation",
            source="VBench's motion smoothness with another interpolator",
            companions=("body_linear_smoothness",),
            least_frames=3,
            code=(STEPS,),
            verified="needs no weights: values worked out by hand",
        ),
        Dimension(
            "imaging_quality",
            "evaluation.vbench.imaging:load",
            "MUSIQ, SPAQ (pyiqa)",
            weights="musiq_spaq",
            package="pyiqa",
            extra="musiq",
        ),
        Dimension(
            "overall_consistency",
            "evaluation.vbench.overall:load",
            "ViCLIP-L/14",
            weights="viclip",
            range=(-1.0, 1.0),
            companions=("overall_consistency_shuffled",),
            needs_prompt=True,
            code=("evaluation.vbench.viclip", CLIP),
        ),
    )
}
