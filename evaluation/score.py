"""Scores a folder of generated volumes against a folder of real ones, case by case, resumably.

Each case is written when it is done (`per_case/<case_id>.json`, keyed by the digests of its files, the protocol and the
code that measures), so a scoring that was killed goes on where it was, and a finished one is not repeated.
"""

from __future__ import annotations

import csv
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from evaluation import along_z, case, fidelity, skill
from evaluation.case import CaseFiles, References, score_case
from evaluation.metrics import metric, network_metrics
from evaluation.settings import Settings
from evaluation.uncertainty import interval
from trace_lightning.anatomy import grid, labels, threshold
from trace_lightning.artifacts import (
    atomic_path,
    case_id_of,
    digest,
    file_digest,
    provenance_path,
    read_json,
    sweep_temporary,
    write_json,
)
from trace_lightning.errors import UserError

SUFFIXES = (".nii.gz", ".nii")
SUMMARY = "summary.json"
log = logging.getLogger(__name__)


def score(
    generated_dir: Path,
    reference_dir: Path,
    out_dir: Path,
    masks_dir: Path | None = None,
    *,
    settings: Settings | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, note="": None,
) -> dict:
    """Score every volume of `generated_dir`.

    Args:
        generated_dir: `<case_id>.nii.gz` in HU, with an optional `<case_id>.json` of provenance beside each.
        reference_dir: the real volumes, under the same names.
        out_dir: receives `per_case/`, `per_case.csv` and `summary.json`.
        masks_dir: `<case_id>.nii.gz` with VISTA3D ids on the generated volume's grid; None: no measures against masks.
        settings: the protocol.
        progress: told (cases done, cases in all, note).

    Returns:
        The summary, as written.

    Raises:
        UserError: a folder is empty, a file is unreadable, or files do not fit each other.
    """
    settings = settings or Settings()
    generated, real = volumes_in(generated_dir), volumes_in(reference_dir)
    masks = None if masks_dir is None else volumes_in(masks_dir)
    cases = _cases(generated, real, masks, Path(reference_dir), masks_dir)
    missing = sorted(real.keys() - generated.keys())
    if missing:
        log.warning("%d of %d real volumes have no generated one: %s", len(missing), len(real), ", ".join(missing))

    out_dir = Path(out_dir)
    sweep_temporary(out_dir)
    references = References(real, settings)
    digests = {case_id: file_digest(path) for case_id, path in real.items()}
    results = []
    for files in cases:
        progress(len(results), len(cases), files.case_id)
        path = out_dir / "per_case" / f"{files.case_id}.json"
        key = _key(files, settings, digests)
        known = read_json(path) if path.exists() else {}
        if known.get("key") != key:
            known = {"key": key} | score_case(files, settings, references)
            write_json(path, known)
        results.append(known)
    progress(len(cases), len(cases), "")

    summary = _summary(results, missing, settings)
    summary["generated_dir"] = os.path.relpath(generated_dir, out_dir)
    summary["reference_dir"] = os.path.relpath(reference_dir, out_dir)
    _write_csv(out_dir / "per_case.csv", results)
    write_json(out_dir / SUMMARY, summary)
    return summary


def volumes_in(folder: Path) -> dict[str, Path]:
    """Return case id -> path of the NIfTI files of a folder, by name.

    Raises:
        UserError: no such folder, no NIfTI file in it, or a case twice.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.endswith(SUFFIXES):
            continue
        if case_id_of(path) in found:
            raise UserError(f"{folder}: {found[case_id_of(path)].name} and {path.name} are the same case; keep one")
        found[case_id_of(path)] = path
    if not found:
        raise UserError(f"{folder}: holds no .nii.gz file; a folder of volumes has <case_id>.nii.gz at its top level")
    return found


def _cases(
    generated: Mapping[str, Path],
    real: Mapping[str, Path],
    masks: Mapping[str, Path] | None,
    reference_dir: Path,
    masks_dir: Path | None,
) -> list[CaseFiles]:
    if unknown := sorted(generated.keys() - real.keys()):
        raise UserError(
            f"{generated[unknown[0]]}: {reference_dir} holds no volume of that name"
            + (f" (nor {len(unknown) - 1} others: {', '.join(unknown[1:])})" if unknown[1:] else "")
            + "; generated and real volumes go by the same names"
        )
    if masks is not None and (bare := sorted(generated.keys() - masks.keys())):
        raise UserError(f"{masks_dir}: holds no mask for {', '.join(bare)}")
    return [CaseFiles(name, path, real[name], masks[name] if masks else None) for name, path in generated.items()]


def _key(files: CaseFiles, settings: Settings, digests: Mapping[str, str]) -> str:
    """Identify everything that a case's result depends on; its chance depends on all real volumes."""
    beside = provenance_path(files.generated)
    return digest(
        {
            "generated": file_digest(files.generated),
            "provenance": file_digest(beside) if beside.exists() else None,
            "reference": digests[files.case_id],
            "mask": files.mask and file_digest(files.mask),
            "others": sorted(digests.values()) if files.mask else None,
            "protocol": settings.protocol(),
            "code": _code(),
        }
    )


@cache
def _code() -> list[str]:
    modules = (along_z, case, fidelity, skill, grid, labels, threshold)
    return [file_digest(Path(module.__file__)) for module in modules]


def _summary(results: Sequence[Mapping], missing: Sequence[str], settings: Settings) -> dict:
    protocol = settings.protocol()
    inputs = {tuple(result["inputs"]) if result["inputs"] is not None else None for result in results}
    if len(inputs) > 1:
        raise UserError(f"the volumes were made from different inputs ({inputs}); score each method in its own folder")
    known = inputs.pop()
    metrics = {name: _summed_up(name, results, settings) for name in results[0]["measures"] if metric(name)}
    for absent in network_metrics():
        metrics[absent.name] = _missing(absent.name, f"needs {absent.network}, which is not computed by this version")
    return {
        "protocol": protocol,
        "protocol_digest": digest(protocol),
        "bootstrap_samples": settings.bootstrap_samples,
        "n": len(results),
        "cases": [result["case_id"] for result in results],
        "missing": list(missing),
        "inputs": None if known is None else list(known),
        "notes": list(dict.fromkeys(note for result in results for note in result["notes"])),
        "groups": {group: dict(Counter(result["states"][group] for result in results)) for group in settings.groups},
        "metrics": metrics,
    }


def _summed_up(name: str, results: Sequence[Mapping], settings: Settings) -> dict:
    """Sum up one measure over the cases that have it."""

    def values(key: str) -> list[float]:
        found = [result["measures"].get(key) for result in results]
        return [value for value in found if value is not None]

    made, real = values(name), values(f"{name}_real")
    if not made:
        return _missing(name, results[0]["reasons"][name])
    spec = metric(name)
    bounds = interval(made, settings.bootstrap_samples) if spec.statistic == "mean" else None
    return {
        "value": float(getattr(np, spec.statistic)(made)),
        "statistic": spec.statistic,
        "mean": float(np.mean(made)),
        "low": bounds[0] if bounds else None,
        "high": bounds[1] if bounds else None,
        "n": len(made),
        "unit": spec.unit,
        "higher_is_better": spec.higher_is_better,
        "real": float(np.mean(real)) if real else None,
        "reason": None,
    }


def _missing(name: str, reason: str) -> dict:
    spec = metric(name)
    nothing = dict.fromkeys(("value", "statistic", "mean", "low", "high"))
    about = {"unit": spec.unit, "higher_is_better": spec.higher_is_better}
    return nothing | {"n": 0} | about | {"real": None, "reason": reason}


def _write_csv(path: Path, results: Sequence[Mapping]) -> None:
    measures = list(results[0]["measures"])
    groups = list(results[0]["states"])
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", *measures, *(f"state_{group}" for group in groups)])
        for result in results:
            numbers = (result["measures"][name] for name in measures)
            states = (result["states"][group] for group in groups)
            writer.writerow([result["case_id"], *("" if v is None else repr(v) for v in numbers), *states])
