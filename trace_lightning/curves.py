"""Curves of a training as CSV: one file for each time it was started, read back as one curve."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from trace_lightning.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch.loggers import CSVLogger

METRICS = "metrics"
NOT_METRICS = ("step", "epoch")

Curves = dict[str, list[tuple[int, float]]]  # metric -> (step, value), by step


def session_logger(folder: Path) -> CSVLogger:
    """Return the logger of a session: Lightning's begins each file anew, so each session has a file of its own."""
    from lightning.pytorch.loggers import CSVLogger

    return CSVLogger(folder, name=METRICS, version=f"session{len(sessions(folder))}", flush_logs_every_n_steps=1)


def sessions(folder: Path) -> list[Path]:
    """Return the folders of a training's sessions, the earliest first."""
    return sorted((Path(folder) / METRICS).glob("session*"), key=lambda path: int(path.name.removeprefix("session")))


def read_curves(folder: Path) -> Curves:
    """Return the curves of a training, its sessions joined.

    A killed session may have gone beyond the checkpoint from which the next one went on; what the next one measured
    again takes the place of what was measured before.
    """
    joined: Curves = {}
    for session in sessions(folder):
        for name, points in _read(session / "metrics.csv").items():
            kept = [point for point in joined.get(name, []) if point[0] < points[0][0]]
            joined[name] = kept + points
    return joined


def _read(path: Path) -> Curves:
    """Read a session's file; a line that a kill cut short is left out."""
    found: Curves = {}
    if not path.is_file():
        return found
    try:
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                if None in line or None in line.values():
                    continue
                for name, text in line.items():
                    if text and name not in NOT_METRICS:
                        found.setdefault(name, []).append((int(line["step"]), float(text)))
    except (ValueError, KeyError, csv.Error) as error:
        raise UserError(f"{path}: damaged ({error}); delete it to draw the other curves") from None
    return found
