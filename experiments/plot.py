"""Draws how trainings went, from the CSV files that they leave: what W&B shows, without it."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from experiments import pipeline
from experiments.tasks import Task
from trace_lightning.artifacts import atomic_path
from trace_lightning.curves import METRICS, Curves, read_curves
from trace_lightning.errors import UserError

COLUMNS = 3  # panels side by side
PANEL_INCH, DPI = (4.8, 3.0), 110
LOGARITHMIC = 20.0  # a metric whose largest value is so many times its smallest one is drawn on a logarithmic axis
FIRST = ("train/loss", "val/loss")


def plot(request: pipeline.Request, out: Path | None = None) -> list[Path]:
    """Draw the curves of the trainings of a table or an experiment: a panel a metric, a line a training.

    Args:
        request: what was run, with which seeds.
        out: folder to write to; None is that of the table among its runs.

    Returns:
        `curves.png`, and the same numbers in `curves.csv`.

    Raises:
        UserError: none of its rows was trained.
    """
    found: dict[str, Curves] = {}
    missing: list[Path] = []
    resolved = pipeline.resolve(request)
    for task in resolved.tasks:
        if task.name == "train":
            of_task = dict(_curves(task))
            missing += [] if of_task else [task.folder]
            found |= of_task
    if not found:
        rest = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"nothing was trained yet: no curves in {missing[0]}{rest}; "
            f"run it first: python -m experiments run {request.target} --profile {request.profile}"
        )
    folder = out or resolved.folders.profile / resolved.table.name
    title = f"{resolved.table.title or resolved.table.name} ({request.profile})"
    written = [folder / "curves.png", folder / "curves.csv"]
    draw(found, written[0], title)
    write(found, written[1])
    return written


def draw(curves: Mapping[str, Curves], path: Path, title: str) -> None:
    """Write a PNG with a panel for each metric and a line for each training.

    Args:
        curves: label of a training -> metric -> (step, value).
        path: of the PNG.
        title: above the panels.
    """
    from matplotlib.figure import Figure

    metrics = metrics_of(curves)
    rows = -(-len(metrics) // COLUMNS)
    size = PANEL_INCH[0] * min(COLUMNS, len(metrics)), PANEL_INCH[1] * rows + 0.6 + 0.2 * len(curves) / COLUMNS
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(rows, min(COLUMNS, len(metrics)), squeeze=False).flat
    lines = {}
    for metric, axis in zip(metrics, axes, strict=False):
        for n, (label, of_training) in enumerate(curves.items()):
            points = of_training.get(metric)
            if points:
                steps, values = zip(*points, strict=True)
                marker = "." if len(points) < 30 else ""
                (lines[label],) = axis.plot(steps, values, color=f"C{n % 10}", marker=marker, linewidth=1)
        axis.set(title=metric, xlabel="step")
        if _spans(curves, metric):
            axis.set_yscale("log")
    for axis in list(figure.axes)[len(metrics) :]:
        axis.set_axis_off()
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=COLUMNS, fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def write(curves: Mapping[str, Curves], path: Path) -> None:
    """Write a CSV with a line for each point: training, metric, step, value."""
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("training", "metric", "step", "value"))
        for label, of_training in curves.items():
            for metric, points in of_training.items():
                writer.writerows((label, metric, step, value) for step, value in points)


def metrics_of(curves: Mapping[str, Curves]) -> list[str]:
    """Return the metrics of all trainings: the losses, then the others by name."""
    names = {name for of_training in curves.values() for name in of_training}
    return [*(name for name in FIRST if name in names), *sorted(names - set(FIRST))]


def _curves(task: Task) -> Iterator[tuple[str, Curves]]:
    """Yield label and curves of a training, or of each of the trainings that a method is made of."""
    for metrics in sorted(task.folder.rglob(METRICS)):
        part = metrics.parent.relative_to(task.folder).as_posix()
        curves = read_curves(metrics.parent)
        if curves:
            yield f"{', '.join(task.rows)}{'' if part == '.' else f': {part}'}", curves


def _spans(curves: Mapping[str, Curves], metric: str) -> bool:
    """Tell whether a metric's values are positive and far apart."""
    values = [value for of_training in curves.values() for _, value in of_training.get(metric, [])]
    return min(values) > 0 and max(values) > LOGARITHMIC * min(values)
