"""A finished scoring on disk, as commands that go on from it read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from evaluation.distances import SetMetric
from evaluation.inputs import volumes_in
from evaluation.records import read_summary, scores_of
from evaluation.settings import Settings
from trace_lightning.anatomy.grid import Grid
from trace_lightning.artifacts import digest, provenance_path, read_json
from trace_lightning.errors import UserError

BEGINS = "generated_from"  # key of a volume's provenance: where along z its making began


@dataclass(frozen=True)
class Scored:
    """A finished scoring.

    Attributes:
        label: as it is printed.
        folder: that holds `summary.json` and `per_case/`.
        summary: as written.
        settings: the protocol; the segmenter's weights are named by their digest.
        records: case id -> what `score.score_case` kept.
    """

    label: str
    folder: Path
    summary: dict
    settings: Settings
    records: dict[str, dict]

    @classmethod
    def read(cls, run: Path, label: str = "") -> Scored:
        """Read a scoring from its folder, or from a run's, which holds `scores/`.

        Raises:
            UserError: nothing was scored there, or by a protocol that this version would read otherwise.
        """
        folder = scores_of(run)
        summary = read_summary(folder)
        records = {case: read_json(folder / "per_case" / f"{case}.json") for case in summary["cases"]}
        return cls(label or str(run), folder, summary, _settings(folder, summary), records)

    @cached_property
    def generated_dir(self) -> Path:
        """Folder of the generated volumes."""
        return self.folder / self.summary["generated_dir"]

    @cached_property
    def reference_dir(self) -> Path:
        """Folder of the real volumes."""
        return self.folder / self.summary["reference_dir"]

    def grids(self, case_id: str) -> tuple[Grid, Grid]:
        """Return the generated volume's own grid, and the protocol's."""
        record = self.records[case_id]
        return Grid.from_json(record["own_grid"]), Grid.from_json(record["grid"])

    def why_no_features(self, metric: SetMetric, cases: Sequence[str]) -> str | None:
        """Say why features that a distance needs are not there, or return None."""
        if all(self._features_path(metric, case).is_file() for case in cases):
            return None
        reason = self.summary["metrics"].get(metric.name, {}).get("reason")
        return reason or f"not scored: python -m evaluation score ... --metrics {metric.name}"

    def features(self, metric: SetMetric, case_id: str) -> dict[str, np.ndarray]:
        """Return side -> (n, d) float32 of the first cut of a distance."""
        path, cut = self._features_path(metric, case_id), metric.cuts(self.settings.views())[0]
        try:
            with np.load(path) as stored:
                return {side: stored[f"{side}.{cut}"] for side in ("generated", "reference")}
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: not readable as features ({error}); delete it and score again") from None

    def began(self) -> str:
        """Return what the first volume's provenance says of where along z it began."""
        try:
            path = provenance_path(volumes_in(self.generated_dir)[self.summary["cases"][0]])
            said = read_json(path).get(BEGINS) if path.is_file() else None
        except (UserError, KeyError):
            said = None
        return said or f"not said (no {BEGINS} beside the volumes)"

    def _features_path(self, metric: SetMetric, case_id: str) -> Path:
        return self.folder / "per_case" / f"{case_id}.distances.{metric.extractor}.{metric.cut}.npz"


def read_all(runs: Sequence[Path], labels: Sequence[str] | None = None) -> list[Scored]:
    """Read scorings that are to be set side by side.

    Raises:
        UserError: labels that do not fit, other protocols, or other grids of the same case.
    """
    labels = labels or [str(run) for run in runs]
    if len(labels) != len(runs) or len(set(labels)) != len(labels):
        raise UserError(f"--labels: {len(runs)} scorings need as many labels, each its own; found {', '.join(labels)}")
    found = [Scored.read(run, label) for run, label in zip(runs, labels, strict=True)]
    first = found[0]
    for other in found[1:]:
        if other.summary["protocol_digest"] != first.summary["protocol_digest"]:
            raise UserError(f"{first.folder} and {other.folder} were scored by different protocols; score them alike")
        for case in first.records.keys() & other.records.keys():
            if not first.grids(case)[1].equals(other.grids(case)[1]):
                raise UserError(f"{first.folder} and {other.folder}: {case} was scored against another real volume")
    return found


def _settings(folder: Path, summary: dict) -> Settings:
    """Return the protocol that a summary names."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    names = {field.name for field in fields(Settings)}
    keys = {name: value for name, value in summary["protocol"].items() if name in names and value is not None}
    try:
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), keys))
    except OmegaConfBaseException as error:
        raise UserError(
            f"{folder}: its protocol cannot be read ({' '.join(str(error).split())}); score again"
        ) from None
    if digest(settings.protocol()) != summary["protocol_digest"]:
        raise UserError(f"{folder}: was scored by another version of the protocol; score again")
    return settings
