"""Lists the metrics and the pretrained weights that they need; checks and fetches these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from evaluation.metrics import Metric, all_metrics
from evaluation.render import console_of
from evaluation.weights import WEIGHTS, check, fetch, find, folder, why_absent
from trace_lightning.errors import UserError


def show_metrics(weights: Path | None = None, width: int | None = None) -> None:
    """Print every metric; then, once, where absent weights come from."""
    from rich import box
    from rich.table import Table

    below, console = folder(weights), console_of(width)
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    grid.add_column("metric", overflow="fold")
    for head in ("what", "backbone", "weights", "range", "best", "source", "verified"):
        grid.add_column(head)
    for spec in all_metrics():
        grid.add_row(spec.name, spec.what, spec.network or "-", _weights_of(spec, below), *_about(spec))
    console.print(grid)
    console.print(f"weights are looked for below {below}", markup=False)
    for name in dict.fromkeys(spec.weights for spec in all_metrics() if spec.weights):
        state = "present" if find(name, below) else why_absent(name, below)
        console.print(f"- {name}: {state}. Licence: {WEIGHTS[name].licence}", markup=False)
    console.print("verified: our value was seen to equal a published one, or its publisher's code on the same weights")


def _about(spec: Metric) -> tuple[str, str, str, str]:
    best = {True: "high", False: "low", None: "as real"}[spec.higher_is_better]
    verified = {True: "yes", False: "no", None: "-"}[spec.verified]
    unit = f" {spec.unit}" if spec.unit else ""
    return f"{spec.range}{unit}", best, spec.source, verified


def _weights_of(spec: Metric, below: Path) -> str:
    if not spec.weights:
        return "-"
    return f"{spec.weights}: {'present' if find(spec.weights, below) else 'absent'}"


def check_weights(names: Sequence[str], weights: Path | None = None) -> int:
    """Print for each of the weights (all, where none is named) whether it is there and intact; 1 unless all are."""
    below, console, wrong = folder(weights), console_of(), 0
    for name in _known(names):
        path = find(name, below)
        try:
            if path is None:
                raise UserError(why_absent(name, below))
            file = next(file for file in WEIGHTS[name].files if below / file.path == path)
            check(path, file)
            state = "intact" if file.checksum else "present; no checksum is published"
        except UserError as error:
            state, wrong = str(error), 1
        console.print(f"{name}: {state} (licence: {WEIGHTS[name].licence})", markup=False, soft_wrap=True)
    return wrong


def fetch_weights(names: Sequence[str], weights: Path | None, progress: Callable[[int, int, str], None]) -> int:
    """Download weights that are not there yet (all, where none is named); 1 where some cannot be had."""
    below, console, wrong = folder(weights), console_of(), 0
    for name in _known(names):
        try:
            path = find(name, below) or fetch(name, below, progress)
            console.print(f"{name}: {path} (licence: {WEIGHTS[name].licence})", markup=False, soft_wrap=True)
        except UserError as error:
            console.print(f"{name}: {error}", markup=False, soft_wrap=True)
            wrong = 1
    return wrong


def _known(names: Sequence[str]) -> Sequence[str]:
    if unknown := [name for name in names if name not in WEIGHTS]:
        raise UserError(f"{unknown[0]}: no such weights; there are {', '.join(WEIGHTS)}")
    return names or tuple(WEIGHTS)
