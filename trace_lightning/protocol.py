"""What a method owes the project, and what it is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from trace_lightning.anatomy.grid import Grid
from trace_lightning.artifacts import Volume

WEIGHTS = "model.safetensors"  # what every training leaves


@dataclass(frozen=True)
class Case:
    """What is known of a patient before the volume is generated.

    Attributes:
        case_id: CT-RATE's `VolumeName` without extension.
        prompt: the report as a prompt.
        grid: the model's grid (D slices of size x size).
        labels: (D, H, W) uint8 VISTA3D ids on `grid`, or None for methods that see no mask.
    """

    case_id: str
    prompt: str
    grid: Grid
    labels: np.ndarray | None = None


@dataclass(frozen=True)
class Generated:
    """A generated volume and what it cost.

    Attributes:
        case_id: the case it was made for.
        volume: HU on the case's grid.
        evaluations_per_slice: network evaluations per finished slice (a pair counts once).
        seconds: wall time of this volume; volumes made abreast share their batch's time equally.
        peak_memory_bytes: peak of the device while it was made (CUDA) or of the process (CPU).
        generated_from: where along z its making began; what is made later follows from what was made before.
        details: sampler settings worth keeping in the provenance.
    """

    case_id: str
    volume: Volume
    evaluations_per_slice: float
    seconds: float
    peak_memory_bytes: int
    generated_from: str
    details: dict = field(default_factory=dict)


FROM_SLICE_0 = "slice 0, the lowest, upwards"
ALL_AT_ONCE = "all slices at once"


class Progress(Protocol):
    """Told how far a stage is; called often, so cheap."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Report `done` of `total` units."""


class VolumeGenerator(Protocol):
    """A trained method. One volume does not depend on the others of the call.

    Attributes:
        num_parameters: of all networks that a volume takes, but for the text tower.
    """

    num_parameters: int

    def generate(self, cases: Sequence[Case], seeds: Sequence[int], progress: Progress) -> Iterator[Generated]:
        """Yield a volume for each case, in order; `progress` counts slices."""
