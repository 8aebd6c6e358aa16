"""Writes, draws and prints error with length."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from evaluation.distances import SET_METRICS
from evaluation.lengths import DIRECTION, Chosen, Row, Window
from evaluation.metrics import metric
from evaluation.render import console_of
from evaluation.scored import Scored
from trace_lightning.artifacts import atomic_path, write_json

PANELS = {"first": "first L slices", "position": "slices between two lengths"}
FLOOR = "real against real"
PANEL_INCH, DPI = (4.6, 2.1), 110


def write(folder: Path, methods: Sequence[Scored], chosen: Chosen, rows: Sequence[Row], failed: dict[str, str]) -> dict:
    """Write `lengths.csv`, `lengths.json` and `lengths.png`; return what the JSON holds."""
    folder = Path(folder)
    missing = [
        Row(method.label, Window("first", 0, length), name, reason=why)
        for name in dict.fromkeys(row.metric for row in rows)
        for length, why in chosen.unreached.items()
        for method in methods
    ]
    rows = [*rows, *missing]
    found = {
        "protocol": methods[0].settings.name,
        "protocol_digest": methods[0].summary["protocol_digest"],
        "direction": DIRECTION,
        "began": {method.label: method.began() for method in methods},
        "scores": {method.label: str(method.folder) for method in methods},
        "cases": list(chosen.cases),
        "left_out": chosen.left_out,
        "lengths": list(chosen.reached),
        "unreached": {str(length): why for length, why in chosen.unreached.items()},
        "failed": failed,
        "rows": [asdict(row) | row.window._asdict() | {"unit": _unit(row.metric)} for row in rows],
    }
    for row in found["rows"]:
        del row["window"]
    columns = [field.name for field in fields(Row) if field.name != "window"]
    with atomic_path(folder / "lengths.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [columns[0], *Window._fields, *columns[1:], "unit"])
        writer.writeheader()
        writer.writerows(found["rows"])
    _plot(folder / "lengths.png", methods, rows)
    write_json(folder / "lengths.json", found)
    return found


def show(found: dict, rows: Sequence[Row]) -> None:
    """Print the table of each panel, and what has to be known to read it."""
    from rich import box
    from rich.table import Table

    console = console_of()
    for panel, title in PANELS.items():
        windows = sorted({row.window for row in rows if row.window.panel == panel})
        unreached = [int(length) for length in found["unreached"]] if panel == "first" else []
        heads = [str(window.last) if panel == "first" else f"{window.first}-{window.last}" for window in windows]
        grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=title, title_justify="left")
        grid.add_column("")
        for head in (*heads, *map(str, unreached)):
            grid.add_column(head, justify="right", no_wrap=True)
        for name in _with_values(rows):
            for label in found["began"]:
                of_method = {row.window: row for row in rows if (row.metric, row.method) == (name, label)}
                line = [of_method[window] for window in windows]
                nothing = ["-"] * len(unreached)
                grid.add_row(f"{_title(name)}  {label}", *(_number(row.value) for row in line), *nothing)
                if name in SET_METRICS:
                    grid.add_row("  a half, at the floor's n", *(_number(row.same_n) for row in line), *nothing)
                    grid.add_row(f"  {FLOOR}, halves", *(_number(row.real) for row in line), *nothing)
                else:
                    grid.add_row("  real", *(_number(row.real) for row in line), *nothing)
        console.print(grid)
    print(f"{len(found['cases'])} volumes at every length: {', '.join(found['cases'])}. L: {found['direction']}.")
    for label, began in found["began"].items():
        print(f"{label}: generation began at: {began}")
    reasons = {row.reason: row.metric for row in rows if row.reason and row.metric not in _with_values(rows)}
    notes = [f"left out: {case} ({why})" for case, why in found["left_out"].items()]
    notes += [f"- at {length}: {why}" for length, why in found["unreached"].items()]
    notes += [f"{', '.join(_of_reason(rows, reason))}: {reason}" for reason in reasons]
    notes += [f"not measured along z: {case}: {why}" for case, why in found["failed"].items()]
    print("\n".join(notes), end="\n" if notes else "")


def _plot(path: Path, methods: Sequence[Scored], rows: Sequence[Row]) -> None:
    from matplotlib.figure import Figure  # no pyplot: nothing here needs a display

    names = _with_values(rows)
    width, height = PANEL_INCH
    figure = Figure(figsize=(2 * width, height * max(1, len(names)) + 0.7), dpi=DPI, layout="constrained")
    figure.suptitle(
        "Solid: generated, dashed: real. A distance is that of halves: generated and real at one n", fontsize=9
    )
    axes = figure.subplots(max(1, len(names)), 2, squeeze=False, sharey="row")
    for line, name in zip(axes, names, strict=False):
        for axis, panel in zip(line, PANELS, strict=True):
            for index, method in enumerate(methods):
                own = sorted(
                    (row for row in rows if (row.metric, row.method, row.window.panel) == (name, method.label, panel)),
                    key=lambda row: row.window,
                )
                _draw(axis, own, panel, method.label, f"C{index}")
            axis.grid(alpha=0.3)
            axis.tick_params(labelsize=7)
        unit = _unit(name)
        line[0].set_ylabel(f"{_title(name)}{f', {unit}' if unit else ''}", fontsize=8)
    for axis, title in zip(axes[-1], PANELS.values(), strict=True):
        axis.set_xlabel(f"{title} (middle of the window)" if title == PANELS["position"] else title, fontsize=8)
    if names:
        axes[0][0].legend(fontsize=7, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw(axis, rows: Sequence[Row], panel: str, label: str, colour: str) -> None:
    """Draw one method: what it has, and the real volumes' value."""
    rows = [row for row in rows if row.value is not None]
    x = [row.window.last if panel == "first" else (row.window.first + row.window.last) / 2 for row in rows]
    distance = bool(rows) and rows[0].metric in SET_METRICS
    at_floor = distance and all(row.same_n is not None for row in rows)
    axis.plot(x, [row.same_n if at_floor else row.value for row in rows], color=colour, marker="o", ms=3, label=label)
    if not distance and all(row.low is not None for row in rows):
        axis.fill_between(x, [row.low for row in rows], [row.high for row in rows], color=colour, alpha=0.15, lw=0)
    real = [(place, row.real) for place, row in zip(x, rows, strict=True) if row.real is not None]
    if real:
        axis.plot(*zip(*real, strict=True), color="0.4" if distance else colour, ls="--", lw=1)


def _with_values(rows: Sequence[Row]) -> list[str]:
    """Return the metrics that have a number anywhere, in order."""
    return list(dict.fromkeys(row.metric for row in rows if row.value is not None))


def _of_reason(rows: Sequence[Row], reason: str) -> list[str]:
    return list(dict.fromkeys(_title(row.metric) for row in rows if row.reason == reason))


def _title(name: str) -> str:
    return SET_METRICS[name].title if name in SET_METRICS else name


def _unit(name: str) -> str:
    spec = metric(name)
    return spec.unit if spec else ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
