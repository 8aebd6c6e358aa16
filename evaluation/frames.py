"""The measures that see grey frames: VBench's dimensions, the CLIP score, CT-CLIP's and LPIPS.

Both sides are seen on the protocol's grid. What a real volume has by itself is computed once and kept beside the real
volumes' segmentations, so that the rows of a table share it. A network is loaded once a process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation import ct_clip
from evaluation.measure import Measured, Numbers, Resources, code_of
from evaluation.metrics import find_metric
from evaluation.pair import CaseFiles, Pair
from evaluation.settings import Settings
from evaluation.vbench.dimensions import Dimension
from evaluation.vbench.video import Scorer, Video
from evaluation.weights import check_found, find, identity, why_absent

if TYPE_CHECKING:
    from evaluation.lpips import Lpips

NO_OTHERS = "needs the prompt of another case"


@dataclass(frozen=True)
class WithWeights:
    """A measure by a network.

    Attributes:
        settings: the protocol.
        resources: weights and device.
    """

    settings: Settings
    resources: Resources

    def needs(self) -> str | None:
        """Return the key of its weights, or None where it needs none."""
        raise NotImplementedError

    def absent(self) -> str | None:
        """Say which weights are missing, and how they are got."""
        name, below = self.needs(), self.resources.weights
        return why_absent(name, below) if name and find(name, below) is None else None

    def check(self) -> None:
        """Compare the weights with their published checksum."""
        if path := self.path():
            check_found(self.needs(), path)

    def path(self) -> Path | None:
        """Return the file of the weights, or None where there is none."""
        return find(self.needs(), self.resources.weights) if self.needs() else None

    def weights(self) -> str | None:
        """Identify the weights, or return None where there are none."""
        return identity(self.needs(), self.resources.weights) if self.needs() else None

    def depends(self, files: CaseFiles) -> object:
        """Nothing besides volumes, protocol and weights."""


@dataclass(frozen=True)
class OnFrames(WithWeights):
    """One of VBench's dimensions, or another metric of a video.

    Attributes:
        dimension: which.
        group: that it is selected by.
        options: keywords of the function that loads it.
    """

    dimension: Dimension
    group: str = "vbench"
    options: tuple[tuple[str, object], ...] = ()

    @property
    def name(self) -> str:
        """Of the group of numbers."""
        return f"{self.group}.{self.dimension.name}"

    @property
    def code(self) -> tuple[str, ...]:
        """Modules whose change changes the numbers."""
        own = self.dimension.entry.partition(":")[0]
        return (own, *self.dimension.code, "evaluation.frames", "evaluation.vbench.video", "evaluation.along_z")

    def provides(self) -> tuple[str, ...]:
        """Return the names of its numbers."""
        names = (self.dimension.name, *self.dimension.companions)
        return (*names, *(f"{name}_ratio" for name in names if find_metric(f"{name}_ratio")))

    def needs(self) -> str | None:
        """Return the key of its weights, or None where it needs none."""
        return self.dimension.weights

    def absent(self) -> str | None:
        """Say what is missing, and how it is got."""
        return self.dimension.why_absent(self.resources.weights)

    def depends(self, files: CaseFiles) -> object:
        """Return the prompts, where it compares with them."""
        return [files.prompt, list(files.other_prompts)] if self.dimension.needs_prompt else None

    def measure(self, pair: Pair) -> Measured:
        """Measure the generated volume, and the real one beside it."""
        made, reason = self._video_numbers(pair, real=False)
        of_real = real_record(self, pair, lambda: {"numbers": self._video_numbers(pair, real=True)[0]})["numbers"]
        numbers: Numbers = dict.fromkeys(self.provides())
        reasons = dict.fromkeys(numbers, reason or "the volume holds no body")
        for name in (self.dimension.name, *self.dimension.companions):
            numbers |= {name: made.get(name), f"{name}_real": of_real.get(name)}
            if name.endswith("_shuffled") and not reason:
                reasons[name] = NO_OTHERS
            ratio = f"{name}_ratio"
            if ratio in numbers and made.get(name) is not None and of_real.get(name):
                numbers[ratio] = made[name] / of_real[name]
        return Measured(numbers, reasons)

    def _scorer(self) -> Scorer:
        return _loaded(self.dimension, self.path(), self.weights(), self.resources.device, self.options)

    def _video_numbers(self, pair: Pair, *, real: bool) -> tuple[Numbers, str | None]:
        """Return the numbers of one side, or why there are none: too few slices, too small ones, no prompt."""
        frames, body = (pair.real_frames, pair.real_body) if real else (pair.made_frames, pair.made_body)
        video = Video(frames, pair.prompt, pair.files.other_prompts, body)
        try:
            return self._scorer()(video), None
        except ValueError as error:
            return {}, str(error)


@dataclass(frozen=True)
class PairedLpips(WithWeights):
    """LPIPS of each slice of the generated volume and the same slice of the real one."""

    group = name = "lpips"
    code = ("evaluation.lpips", "evaluation.frames", "evaluation.along_z", "evaluation.features.network")

    def provides(self) -> tuple[str, ...]:
        """Return the names of its numbers."""
        return ("lpips",)

    def needs(self) -> str:
        """Return the key of its weights."""
        return "alexnet"

    def absent(self) -> str | None:
        """Say what is missing, and how it is got."""
        if find_spec("lpips") is None:
            return "needs the package lpips: pip install 'trace-lightning[metrics]'"
        return super().absent()

    def measure(self, pair: Pair) -> Measured:
        """Compare the two volumes, slice by slice."""
        from evaluation.lpips import MIN_SIZE

        made, real = pair.made_frames, pair.real_frames
        if min(made.shape[1:]) < MIN_SIZE:
            size = " x ".join(map(str, made.shape[1:]))
            reason = f"slices of {size} pixels; LPIPS needs {MIN_SIZE} x {MIN_SIZE} or more"
            return Measured({"lpips": None}, {"lpips": reason})
        found = _lpips(self.path(), self.weights(), self.resources.device)(made, real)
        return Measured({"lpips": float(np.mean(found, dtype=np.float64))})


@dataclass(frozen=True)
class WithReport(WithWeights):
    """CT-CLIP's score of volume and prompt, where the user gives CT-CLIP."""

    group = name = "ct_clip"
    code = ("evaluation.ct_clip", "evaluation.frames")

    def provides(self) -> tuple[str, ...]:
        """Return the names of its numbers."""
        return (ct_clip.NAME, *ct_clip.DIMENSION.companions)

    def needs(self) -> str:
        """Return the key of its weights."""
        return "ct_clip"

    def absent(self) -> str | None:
        """Say what is missing, and how it is got."""
        if not self.resources.ct_clip:
            return "needs CT-CLIP, which is the user's: --ct-clip MODULE:FUNCTION (see evaluation/ct_clip.py)"
        return super().absent()

    def depends(self, files: CaseFiles) -> object:
        """Return the prompts and whose code it is."""
        return [files.prompt, list(files.other_prompts), self.resources.ct_clip]

    def measure(self, pair: Pair) -> Measured:
        """Score the generated volume, and the real one beside it."""
        real = pair.real, pair.grid.spacing_mm
        made, reason = self._numbers(pair, pair.made, real)
        of_real = real_record(self, pair, lambda: {"numbers": self._numbers(pair, pair.real, None)[0]})["numbers"]
        numbers = {name: made.get(name) for name in self.provides()}
        numbers |= {f"{name}_real": of_real.get(name) for name in self.provides()}
        return Measured(numbers, dict.fromkeys(self.provides(), reason or NO_OTHERS))

    def _numbers(self, pair: Pair, hu: np.ndarray, reference: object) -> tuple[Numbers, str | None]:
        air = not self.settings.text.pad_before_scaling
        scorer = _ct_clip(self.path(), self.weights(), self.resources.device, self.resources.ct_clip, air)
        try:
            return scorer(hu, pair.grid.spacing_mm, pair.prompt or "", pair.files.other_prompts, reference), None
        except ValueError as error:
            return {}, str(error)


def real_record(measure: WithWeights, pair: Pair, compute: Callable[[], dict]) -> dict:
    """Return what a real volume has by itself, from disk where another scoring left it there."""
    key = {
        "measure": measure.name,
        "volume": pair.references.digests[pair.files.case_id],
        "grid": pair.grid.to_json(),
        "protocol": pair.settings.protocol(),
        "weights": measure.weights(),
        "code": code_of(measure),
        "depends": measure.depends(pair.files),
    }
    return pair.references.store.record("measured", key, compute)


@cache
def _loaded(
    dimension: Dimension, path: Path | None, weights: str | None, device: str, options: tuple[tuple[str, object], ...]
) -> Scorer:
    return dimension.load(path, device, **dict(options))


@cache
def _lpips(path: Path, weights: str, device: str) -> Lpips:
    from evaluation.lpips import Lpips

    return Lpips(path, device)


@cache
def _ct_clip(path: Path, weights: str, device: str, entry: str, air_padding: bool) -> ct_clip.CtClipScore:
    return ct_clip.load(path, device, entry, air_padding)
