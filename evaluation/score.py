"""Scores a folder of generated volumes against a folder of real ones, case by case, resumably.

Each case is written when it is done (`per_case/<case_id>.json`, keyed by the digests of its files, the protocol and the
code that measures), so a scoring that was killed goes on where it was, and a finished one is not repeated; a measure
that is asked for later is added. A file that cannot be read is named, and the others are scored.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from evaluation import inputs, pair
from evaluation import references as references_module
from evaluation.case import AgainstMask
from evaluation.inputs import Frames, input_digest, matched, volumes_in
from evaluation.measure import Measure, Resources, code_of
from evaluation.pair import CaseFiles, Pair
from evaluation.references import References
from evaluation.report import write_report
from evaluation.selection import Selection, select
from evaluation.settings import Settings
from evaluation.summary import summarise, write_csv, write_labels_csv
from evaluation.workers import each
from trace_lightning.anatomy import grid, labels, state, threshold
from trace_lightning.artifacts import (
    atomic_path,
    digest,
    file_digest,
    provenance_path,
    read_json,
    sweep_temporary,
    write_json,
)
from trace_lightning.errors import UserError

SUMMARY = "summary.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scoring:
    """What is the same for all cases of a scoring.

    Attributes:
        settings: the protocol.
        selection: the measures.
        references: the real volumes.
        folder: receives `per_case/`.
    """

    settings: Settings
    selection: Selection
    references: References
    folder: Path

    def record_path(self, case_id: str) -> Path:
        """Return where the record of a case is kept."""
        return self.folder / "per_case" / f"{case_id}.json"

    def features_path(self, case_id: str, name: str) -> Path:
        """Return where the features that a measure took from a case are kept."""
        return self.folder / "per_case" / f"{case_id}.{name}.npz"


def score(
    generated_dir: Path,
    reference_dir: Path,
    out_dir: Path,
    masks_dir: Path | None = None,
    *,
    settings: Settings | None = None,
    metrics: Iterable[str] | None = None,
    jobs: int = 1,
    resources: Resources | None = None,
    frames: Frames | None = None,
    prompts: Mapping[str, str] | None = None,
    cache_dir: Path | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, note="": None,
) -> dict:
    """Score every volume of `generated_dir`.

    Args:
        generated_dir: `<case_id>.nii.gz` (.nii, .mha, or a folder of PNG frames) in HU, with an optional
            `<case_id>.json` of provenance beside each.
        reference_dir: the real volumes, under the same names.
        out_dir: receives `per_case/`, `per_case.csv`, `per_label.csv`, `summary.json` and `report.md`.
        masks_dir: `<case_id>.nii.gz` with VISTA3D ids on the generated volume's grid; None: no measures against masks.
        settings: the protocol.
        metrics: names of groups of measures or of numbers; None for all.
        jobs: processes; changes no number.
        resources: weights and device of networks.
        frames: spacing and window of PNG frames.
        prompts: case id -> prompt; else the provenance of the generated volume says, else that of the real one.
        cache_dir: keeps what is known of the real volumes (segmentations, features, numbers); scorings may share it.
            None: below `out_dir`.
        progress: told (cases done, cases in all, note).

    Returns:
        The summary, as written. `failed` holds the cases that could not be scored, and why; `unmatched` generated
        volumes without a real one; `missing` real volumes without a generated one.

    Raises:
        UserError: a folder is empty, no names match, weights are damaged, or no case could be scored.
    """
    settings = settings or Settings()
    selection = select(metrics, settings, resources or Resources())
    for measure in selection.measures:
        if measure.absent() is None:
            measure.check()
    generated, real = volumes_in(generated_dir), volumes_in(reference_dir)
    masks = None if masks_dir is None else volumes_in(masks_dir)
    names = matched(generated, real)
    _warn(names.missing, len(real), "real volumes have no generated one")
    _warn(names.unmatched, len(generated), "generated volumes have no real one")

    out_dir = Path(out_dir)
    sweep_temporary(out_dir)
    failed = {}
    if masks is not None:
        failed |= {
            case_id: f"{masks_dir}: holds no mask for {case_id}" for case_id in names.both if case_id not in masks
        }
    references = References(real, settings, cache_dir or out_dir / "real", frames)
    if masks is not None and any(isinstance(measure, AgainstMask) for measure in selection.measures):
        unreadable = _segment_all(references, jobs, progress)  # once each: chance is taken over all real volumes
        failed |= unreadable
        references = references.without(unreadable)
    scoring = Scoring(settings, selection, references, out_dir)
    texts = {name: _prompt(name, prompts or {}, generated[name], real[name]) for name in names.both}
    if prompts is not None:
        _warn([name for name, text in texts.items() if not text], len(texts), "volumes have no prompt")
    cases = [
        CaseFiles(
            name,
            generated[name],
            real[name],
            masks and masks[name],
            frames,
            texts[name],
            tuple(text for other, text in texts.items() if other != name and text),
        )
        for name in names.both
        if name not in failed
    ]

    records = {}
    for files, (record, error) in each(_score_one, cases, scoring, jobs, progress, lambda files: files.case_id):
        if error is None:
            records[files.case_id] = record
        else:
            failed[files.case_id] = error
    _warn(failed.values(), len(names.both), "volumes could not be scored")
    if not records:
        raise UserError("; ".join(failed.values()))

    in_order = [records[name] for name in sorted(records)]
    summary = summarise(in_order, settings, selection, scoring.features_path, references.store) | {
        "missing": list(names.missing),
        "unmatched": list(names.unmatched),
        "failed": dict(sorted(failed.items())),
        "generated_dir": os.path.relpath(generated_dir, out_dir),
        "reference_dir": os.path.relpath(reference_dir, out_dir),
    }
    write_csv(out_dir / "per_case.csv", in_order, selection)
    write_labels_csv(out_dir / "per_label.csv", in_order)
    write_report(out_dir / "report.md", summary)
    write_json(out_dir / SUMMARY, summary)
    return summary


def score_case(files: CaseFiles, scoring: Scoring, measures: Sequence[Measure]) -> dict:
    """Measure one case.

    Returns:
        JSON-ready: `parts` (measure -> its key and the names of its numbers), `measures` (name -> number or None),
        `reasons` (name -> why it would be None), `inputs` and `notes` from the volume's provenance, both grids, and
        what the measures keep besides, as `states` and `labels`. Features go to files of their own.

    Raises:
        UserError: a file cannot be read, or the files do not fit each other.
    """
    case_pair = Pair(files, scoring.settings, scoring.references)
    provenance = case_pair.provenance
    record = {
        "case_id": files.case_id,
        "inputs": provenance.get("inputs"),
        "notes": provenance.get("notes") or [],
        "grid": case_pair.grid.to_json(),
        "own_grid": case_pair.own_grid.to_json(),
        "parts": {},
        "measures": {},
        "reasons": {},
    }
    for measure in measures:
        names = []
        if hasattr(measure, "features"):
            with (
                atomic_path(scoring.features_path(files.case_id, measure.name)) as temporary,
                temporary.open("wb") as file,
            ):
                np.savez(file, **measure.features(case_pair))
        else:
            found = measure.measure(case_pair)
            names = list(found.numbers)
            record["measures"] |= found.numbers
            record["reasons"] |= found.reasons
            record |= found.details
        weights = measure.weights()
        record["parts"][measure.name] = {
            "key": _part_key(measure, files, weights),
            "weights": weights,
            "names": names,
        }
    return record


def _score_one(files: CaseFiles, scoring: Scoring) -> tuple[dict | None, str | None]:
    """Return the record of a case, or why there is none."""
    try:
        return _record(files, scoring), None
    except UserError as error:
        return None, str(error)


def _record(files: CaseFiles, scoring: Scoring) -> dict:
    """Return the record of a case with all measures asked for, measuring what is not there yet."""
    path, key = scoring.record_path(files.case_id), _key(files, scoring)
    known = _known(path)
    if fresh := known.get("key") != key:
        known = {"key": key, "parts": {}, "measures": {}, "reasons": {}}
    stale = [measure for measure in scoring.selection.measures if not _is_measured(measure, known, files, scoring)]
    for measure in stale:
        for name in known["parts"].pop(measure.name, {}).get("names", ()):
            known["measures"].pop(name, None)
            known["reasons"].pop(name, None)
    todo = [measure for measure in stale if measure.absent() is None]
    if not (todo or fresh):
        return known
    found = score_case(files, scoring, todo)
    for kind in ("parts", "measures", "reasons"):
        found[kind] = known[kind] | found[kind]
    known = known | found
    write_json(path, known)
    return known


def _known(path: Path) -> dict:
    """Return the record of a case that was measured before; a damaged one is measured again."""
    try:
        return read_json(path) if path.exists() else {}
    except UserError as error:
        log.warning("%s; measured again", error)
        return {}


def _key(files: CaseFiles, scoring: Scoring) -> str:
    """Identify everything that all measures of a case depend on; its chance depends on all real volumes."""
    beside, digests = provenance_path(files.generated), scoring.references.digests
    return digest(
        {
            "generated": input_digest(files.generated),
            "provenance": file_digest(beside) if beside.exists() else None,
            "reference": digests[files.case_id],
            "mask": files.mask and file_digest(files.mask),
            "others": sorted(digests.values()) if files.mask else None,
            "frames": files.frames and asdict(files.frames),
            "protocol": scoring.settings.protocol(),
            "code": _code(),
        }
    )


def _is_measured(measure: Measure, known: Mapping, files: CaseFiles, scoring: Scoring) -> bool:
    """Tell whether a record holds a measure, by the weights that are there now; by any, where they have gone."""
    part = known["parts"].get(measure.name)
    if part is None or (
        hasattr(measure, "features") and not scoring.features_path(files.case_id, measure.name).is_file()
    ):
        return False
    weights = part.get("weights") if measure.absent() else measure.weights()
    return part["key"] == _part_key(measure, files, weights)


def _part_key(measure: Measure, files: CaseFiles, weights: str | None) -> str:
    return digest([code_of(measure), measure.depends(files), weights])


def _prompt(case_id: str, given: Mapping[str, str], generated: Path, real: Path) -> str | None:
    """Return the text of a case, or None; a provenance that cannot be read is said when the case is scored."""
    if text := given.get(case_id):
        return text
    for path in (provenance_path(generated), provenance_path(real)):
        try:
            said = read_json(path) if path.exists() else {}
        except UserError:
            continue
        if isinstance(said, dict) and said.get("prompt"):
            return str(said["prompt"])
    return None


@cache
def _code() -> list[str]:
    modules = (inputs, pair, references_module, grid, labels, state, threshold)
    return [file_digest(Path(module.__file__)) for module in modules]


def _segment_all(references: References, jobs: int, progress: Callable[[int, int, str], None]) -> dict[str, str]:
    """Segment every real volume; return those that cannot be read, and why."""
    found = each(_segment_one, list(references.paths), references, jobs, progress, lambda case_id: f"real {case_id}")
    return {case_id: error for case_id, error in found if error is not None}


def _segment_one(case_id: str, references: References) -> str | None:
    try:
        references.segmented(case_id)
    except UserError as error:
        return str(error)
    return None


def _warn(names: Iterable[str], total: int, what: str) -> None:
    names = list(names)
    if names:
        log.warning("%d of %d %s: %s", len(names), total, what, ", ".join(names))
