"""Sums up the records of cases: means with intervals, states, classes, and tables with a line a case."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluation.features.store import FeatureStore
from evaluation.fidelity import MEASURES
from evaluation.measure import SetMeasure
from evaluation.metrics import find_metric, metric, network_metrics
from evaluation.selection import Selection
from evaluation.settings import Settings
from evaluation.uncertainty import interval
from trace_lightning.artifacts import atomic_path, digest
from trace_lightning.errors import UserError

LABEL_COLUMNS = ("label", "name", *MEASURES, "state", "shared", "generated", "reference")
Features = Callable[[str, str], Path]  # (case id, measure) -> file of features


def summarise(
    records: Sequence[Mapping], settings: Settings, selection: Selection, features: Features, store: FeatureStore
) -> dict:
    """Return what all cases say together, JSON-ready.

    Args:
        records: of the cases, in order.
        settings: the protocol.
        selection: the measures, and the numbers that are reported.
        features: where the features of a case lie.
        store: keeps distances between sets.

    Raises:
        UserError: the volumes were made from different inputs.
    """
    protocol = settings.protocol()
    inputs = {tuple(record["inputs"]) if record["inputs"] is not None else None for record in records}
    if len(inputs) > 1:
        raise UserError(f"the volumes were made from different inputs ({inputs}); score each method in its own folder")
    known = inputs.pop()
    return {
        "protocol": protocol,
        "protocol_digest": digest(protocol),
        "bootstrap_samples": settings.bootstrap_samples,
        "n": len(records),
        "cases": [record["case_id"] for record in records],
        "inputs": None if known is None else list(known),
        "notes": list(dict.fromkeys(note for record in records for note in record["notes"])),
        "groups": _states(records, settings),
        "classes": class_means(records),
        "metrics": {
            name: entry
            for name, entry in _entries(records, settings, selection, features, store).items()
            if selection.wants(name)
        },
    }


def _entries(
    records: Sequence[Mapping], settings: Settings, selection: Selection, features: Features, store: FeatureStore
) -> dict[str, dict]:
    """Return what is said of each number: of volumes, of the whole set, and of those that are not there."""
    chosen = {measure.name: measure for measure in selection.measures}
    names = dict.fromkeys(
        name
        for record in records
        for part, entry in record["parts"].items()
        if part in chosen
        for name in entry["names"]
        if find_metric(name)
    )
    entries = {name: summed_up(name, records, settings.bootstrap_samples) for name in names}
    for measure in chosen.values():
        # What was measured while the weights were there stays when they have gone.
        measured = [measure.name in record["parts"] for record in records]
        if (reason := measure.absent()) and not (all(measured) if hasattr(measure, "features") else any(measured)):
            entries |= {name: _missing(name, reason) for name in measure.provides()}
        elif hasattr(measure, "features"):
            entries |= _of_the_set(measure, records, features, store)
    for spec in network_metrics():
        reason = spec.unavailable or f"needs {spec.network}, which this scoring did not compute"
        entries.setdefault(spec.name, _missing(spec.name, reason))
    return entries


def _of_the_set(
    measure: SetMeasure, records: Sequence[Mapping], features: Features, store: FeatureStore
) -> dict[str, dict]:
    of_cases = {}
    for record in records:
        with np.load(features(record["case_id"], measure.name)) as stored:
            of_cases[record["case_id"]] = dict(stored)
    found = measure.sum_up(of_cases, store)
    return {name: _missing(name, entry.get("reason")) | {"statistic": "set"} | entry for name, entry in found.items()}


def summed_up(name: str, records: Sequence[Mapping], bootstrap_samples: int) -> dict:
    """Return what is said of one number over the cases that have it."""

    def values(key: str) -> list[float]:
        found = [record["measures"].get(key) for record in records]
        return [value for value in found if value is not None]

    made, real = values(name), values(f"{name}_real")
    if not made:
        return _missing(name, _reason(name, records))
    spec = metric(name)
    bounds = interval(made, bootstrap_samples) if spec.statistic == "mean" else None
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


def _reason(name: str, records: Sequence[Mapping]) -> str:
    return next(record["reasons"][name] for record in records if name in record["reasons"])


def _states(records: Sequence[Mapping], settings: Settings) -> dict[str, dict[str, int]]:
    """Return group -> in how many volumes it was scored, missed, spurious, absent."""
    with_states = [record["states"] for record in records if "states" in record]
    return {group: dict(Counter(states[group] for states in with_states)) for group in settings.groups if with_states}


def class_means(records: Sequence[Mapping]) -> list[dict]:
    """Return the means of every class over the volumes in which it has a score, by id."""
    rows: dict[int, list[dict]] = {}
    for record in records:
        for row in record.get("labels", ()):
            rows.setdefault(row["label"], []).append(row)
    found = []
    for label, entries in sorted(rows.items()):
        scored = [entry for entry in entries if entry["dice"] is not None]
        means = {name: float(np.mean([e[name] for e in scored])) if scored else None for name in MEASURES}
        states = dict(Counter(entry["state"] for entry in entries))
        found.append(
            {"label": label, "name": entries[0].get("name", "")} | means | {"n": len(scored), "states": states}
        )
    return found


def write_csv(path: Path, records: Sequence[Mapping], selection: Selection) -> None:
    """Write a line a case."""
    names = list(dict.fromkeys(name for record in records for name in record["measures"]))
    names = [name for name in names if selection.wants(name.removesuffix("_real"))]
    groups = list(dict.fromkeys(group for record in records for group in record.get("states", ())))
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", *names, *(f"state_{group}" for group in groups)])
        for record in records:
            numbers = (record["measures"].get(name) for name in names)
            states = (record.get("states", {}).get(group, "") for group in groups)
            writer.writerow([record["case_id"], *("" if v is None else repr(v) for v in numbers), *states])


def write_labels_csv(path: Path, records: Sequence[Mapping]) -> None:
    """Write a line a case and class."""
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", *LABEL_COLUMNS])
        for record in records:
            for row in record.get("labels", ()):
                writer.writerow([record["case_id"], *("" if row[c] is None else row[c] for c in LABEL_COLUMNS)])
