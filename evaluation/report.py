"""Writes what a scoring found for people to read: report.md beside the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from trace_lightning.artifacts import write_text

SEVERAL = 12  # classes that are listed one by one; more of them are in per_label.csv


def write_report(path: Path, summary: Mapping) -> None:
    """Write a summary as Markdown."""
    write_text(path, report(summary))


def report(summary: Mapping) -> str:
    """Return a summary as Markdown: what was scored, every number with its n and interval, and what is missing."""
    protocol = summary["protocol"]
    parts = [
        "# Scores",
        f"{summary['n']} volumes of `{summary['generated_dir']}` against `{summary['reference_dir']}`, protocol "
        f"`{protocol['name']}` ({summary['protocol_digest']}).",
        *_not_scored(summary),
        *_numbers(summary),
        *_against_mask(summary),
        *_states(summary),
        *_classes(summary["classes"]),
        *_reasons(summary["metrics"]),
        *_notes(summary["notes"]),
        "## Protocol",
        _table(("key", "value"), [(key, _text(value)) for key, value in protocol.items()]),
    ]
    return "\n\n".join(parts) + "\n"


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(entry)}" for key, entry in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else "-" if value is None else str(value)


def _not_scored(summary: Mapping) -> list[str]:
    lines = [f"- `{case_id}`: {reason}" for case_id, reason in summary["failed"].items()]
    lines += [f"- `{case_id}`: no real volume of that name" for case_id in summary["unmatched"]]
    lines += [f"- `{case_id}`: no generated volume" for case_id in summary["missing"]]
    return ["## Not scored", "\n".join(lines)] if lines else []


def _numbers(summary: Mapping) -> list[str]:
    rows = []
    for name, entry in summary["metrics"].items():
        if entry["value"] is None:
            continue
        better = {True: "higher", False: "lower", None: ""}[entry["higher_is_better"]]
        interval = "" if entry["low"] is None else f"{entry['low']:.4g} to {entry['high']:.4g}"
        size = str(entry["n"]) + (f" (d {entry['d']})" if entry.get("d") else "")
        cells = f"{entry['value']:.4g}", entry["unit"], interval, _number(entry["real"]), _number(entry.get("floor"))
        rows.append((name, *cells, size, better, entry["statistic"]))
    head = ("", "value", "unit", "95 %", "real volumes", "real against real", "n", "better", "statistic")
    words = f"95 % intervals by {summary['bootstrap_samples']} bootstrap samples of the volumes; one volume gives none."
    return ["## Numbers", _table(head, rows), words] if rows else []


def _against_mask(summary: Mapping) -> list[str]:
    """Return each group's Dice against the mask between its floor (chance) and its ceiling."""
    names = ("chance", "mask_dice", "ceiling", "skill")
    entries = summary["metrics"]
    rows = [
        (group, *(_number(entries.get(f"{name}_{group}", {}).get("value")) for name in names))
        for group in summary["groups"]
        if entries.get(f"mask_dice_{group}", {}).get("value") is not None
    ]
    head = ("Dice against the mask", "floor (other patients)", "here", "ceiling (the real volume)", "skill")
    return [_table(head, rows)] if rows else []


def _states(summary: Mapping) -> list[str]:
    states = ("scored", "missed", "spurious", "absent")
    rows = [(group, *(found.get(state, 0) for state in states)) for group, found in summary["groups"].items()]
    return ["## Missed and spurious", _table(("volumes in which it was", *states), rows)] if rows else []


def _classes(classes: Sequence[Mapping]) -> list[str]:
    if not 2 < len(classes) <= SEVERAL:
        return [f"{len(classes)} classes were compared; each is in `per_label.csv`."] if classes else []
    rows = [
        (f"{row['label']} {row['name']}", *(_number(row[name]) for name in ("dice", "jaccard", "hd95_mm")), row["n"])
        for row in classes
    ]
    return [_table(("class", "Dice", "Jaccard", "HD95, mm", "n"), rows)]


def _reasons(metrics: Mapping) -> list[str]:
    absent: dict[str, list[str]] = {}
    for name, entry in metrics.items():
        if entry["value"] is None:
            absent.setdefault(entry["reason"], []).append(name)
    lines = [f"- {', '.join(f'`{name}`' for name in names)}: {reason}" for reason, names in absent.items()]
    warned = [f"- `{name}`: {entry['warning']}" for name, entry in metrics.items() if entry.get("warning")]
    return [
        *(["## Warnings", "\n".join(warned)] if warned else []),
        *(["## Without a number", "\n".join(lines)] if lines else []),
    ]


def _notes(notes: Iterable[str]) -> list[str]:
    lines = [f"- {note}" for note in notes]
    return ["## Notes of the makers", "\n".join(lines)] if lines else []


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _table(head: Sequence[str], rows: Sequence[Sequence]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
