"""What a measure is: its names, what it needs, and how a case gives its numbers.

A `CaseMeasure` gives numbers for one volume. A `SetMeasure` gives features for each volume, which are kept, and numbers
for all volumes together. `evaluation/selection.py` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from evaluation.features.store import FeatureStore
from evaluation.pair import CaseFiles, Pair
from evaluation.weights import folder
from trace_lightning.artifacts import file_digest
from trace_lightning.errors import UserError

Numbers = dict[str, float | None]
Reasons = dict[str, str]  # why a number is None


@dataclass(frozen=True)
class Measured:
    """What a measure found in one case.

    Attributes:
        numbers: name -> value, or None; the real volume's own value goes by `<name>_real`.
        reasons: name -> why the value would be None.
        details: more that is worth keeping in the case's record, JSON-ready.
    """

    numbers: Numbers
    reasons: Reasons = field(default_factory=dict)
    details: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Resources:
    """What a scoring is given besides volumes.

    Attributes:
        weights: folder of pretrained weights.
        device: that networks run on, as torch names it.
        ct_clip: the user's CT-CLIP as `module:function`, see `evaluation/ct_clip.py`.
    """

    weights: Path = field(default_factory=folder)
    device: str = "cpu"
    ct_clip: str = ""

    def __post_init__(self) -> None:
        """Refuse a device that is not there, before hours of work.

        Raises:
            UserError: no such device, or not here.
        """
        if self.device == "cpu":
            return
        import torch

        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
            reason = str(error).splitlines()[0]
            raise UserError(f"device: {self.device}: cannot be used here ({reason}); cpu always can") from None


class CaseMeasure(Protocol):
    """Numbers of one volume beside its real one.

    Attributes:
        name: of the numbers that it gives together.
        group: of measures, as `--metrics` selects it.
        code: modules whose change changes the numbers.
    """

    name: str
    group: str
    code: tuple[str, ...]

    def provides(self) -> Sequence[str]:
        """Return the names of its numbers."""

    def absent(self) -> str | None:
        """Say why it cannot be computed here (weights that are missing, and how they are got), or None."""

    def check(self) -> None:
        """Raise a UserError where its weights are not the published ones."""

    def weights(self) -> str | None:
        """Identify its weights; None where it needs none, or where they are not there."""

    def depends(self, files: CaseFiles) -> object:
        """Return what the numbers of a case depend on besides its volumes and the protocol, JSON-ready."""

    def measure(self, pair: Pair) -> Measured:
        """Measure one case."""


class SetMeasure(Protocol):
    """Numbers of all volumes together, from features of each.

    Attributes:
        name: of the numbers that it gives together.
        group: of measures, as `--metrics` selects it.
        code: modules whose change changes the features.
    """

    name: str
    group: str
    code: tuple[str, ...]

    def provides(self) -> Sequence[str]:
        """Return the names of its numbers."""

    def absent(self) -> str | None:
        """Say why it cannot be computed here (weights that are missing, and how they are got), or None."""

    def check(self) -> None:
        """Raise a UserError where its weights are not the published ones."""

    def weights(self) -> str | None:
        """Identify its weights; None where it needs none, or where they are not there."""

    def depends(self, files: CaseFiles) -> object:
        """Return what the features of a case depend on besides its volumes and the protocol, JSON-ready."""

    def features(self, pair: Pair) -> dict[str, np.ndarray]:
        """Return the features of one case, both sides; kept as `per_case/<case_id>.<name>.npz`."""

    def sum_up(self, features: Mapping[str, Mapping[str, np.ndarray]], store: FeatureStore) -> dict[str, dict]:
        """Return name -> {value, low, high, n, real, reason, ...} from the features of all cases (case id -> arrays).

        What an entry lacks is filled in: unit, direction, None. `store` keeps what takes long.
        """


Measure = CaseMeasure | SetMeasure


def code_of(measure: Measure) -> list[str]:
    """Return the digests of the files that a measure is computed by."""
    return [_code_digest(module) for module in measure.code]


@cache
def _code_digest(module: str) -> str:
    return file_digest(Path(find_spec(module).origin))
