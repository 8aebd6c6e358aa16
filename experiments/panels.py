"""Pictures and scores of a row for W&B: drawn and written beside its volumes, then copied to the run of its stage."""

from __future__ import annotations

import csv
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.tasks import GROUND_TRUTH, Task
from trace_lightning import tracking
from trace_lightning.artifacts import (
    Volume,
    atomic_path,
    case_id_of,
    provenance_path,
    read_json,
    read_labels,
    read_volume,
)
from trace_lightning.config import Experiment

if TYPE_CHECKING:
    import wandb

FOLDER = "panels"
PROMPT_CHARACTERS = 110  # a line of the prompt above a picture
ROW_INCH, DPI = 2.2, 90


def publish(task: Task) -> None:
    """Copy what a finished stage left to a run of its own: pictures after `generate`, scores after `evaluate`.

    Under a sweep's agent the real volumes' scores stay out: its one run is the row's.
    """
    copy = _COPY.get(task.name)
    real = task.rows == (GROUND_TRUTH,)
    if copy is None or task.experiment.run.wandb == "off" or (real and tracking.in_sweep()):
        return
    with tracking.opened(task.experiment, task.name, task.rows[0], task.folder) as run:
        copy(task, run)


def publish_table(experiment: Experiment, name: str, folder: Path) -> None:
    """Copy a printed table and its montage to a run of job type `table`; a sweep's agent has no run for it.

    Args:
        experiment: any of its rows; says where runs go.
        name: of the table.
        folder: where table.csv and montage.png are.
    """
    if experiment.run.wandb == "off" or tracking.in_sweep():
        return
    import wandb

    with tracking.opened(experiment, "table", name, folder) as run:
        found: dict[str, Any] = {"table": wandb.Table(*_wide(folder / "table.csv"), allow_mixed_types=True)}
        if (folder / "montage.png").is_file():
            found["montage"] = wandb.Image(str(folder / "montage.png"))
        run.log(found)


def draw_case(task: Task, case_id: str) -> Path:
    """Write a case's picture: its mask above its volume, in three planes through the middle, the prompt as title.

    Args:
        task: of a row; the mask is that of the real volumes it needs.
        case_id: a volume of the row.

    Returns:
        `panels/<case_id>.png` in the row's folder.
    """
    from matplotlib.figure import Figure

    from evaluation.montage import PLANES, WINDOW_HU, planes

    real = next((need.folder for need in task.needs if need.name == "reference"), task.folder)
    volume = read_volume(task.folder / "volumes" / f"{case_id}.nii.gz")
    labels, grid = read_labels(real / "masks" / f"{case_id}.nii.gz")
    prompt = read_json(provenance_path(real / "volumes" / f"{case_id}.nii.gz"))["prompt"]
    middle = (0.5, 0.5, 0.5)
    low, high = WINDOW_HU
    rows = [
        (
            "mask",
            planes(Volume(labels.astype("float32"), grid), middle),
            {"cmap": "nipy_spectral", "vmin": 0, "vmax": 132},
        ),
        (task.rows[0], planes(volume, middle), {"cmap": "gray", "vmin": low, "vmax": high}),
    ]
    figure = Figure(figsize=(ROW_INCH * (len(PLANES) + 0.5), ROW_INCH * len(rows) + 0.8), dpi=DPI, layout="constrained")
    figure.suptitle(textwrap.fill(f"{case_id}: {prompt}", PROMPT_CHARACTERS, max_lines=4), fontsize=7)
    for line, (label, slices, style) in zip(figure.subplots(len(rows), len(PLANES)), rows, strict=True):
        for axis, name, (image, aspect) in zip(line, PLANES, slices, strict=True):
            axis.imshow(image, aspect=aspect, interpolation="nearest", **style)
            axis.set(xticks=[], yticks=[], xlabel=name)
        line[0].set_ylabel(label)
    path = task.folder / FOLDER / f"{case_id}.png"
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _copy_volumes(task: Task, run: wandb.Run) -> None:
    import wandb

    cases = [case_id_of(path) for path in sorted((task.folder / "volumes").glob("*.nii.gz"))]
    run.log({"volumes": [wandb.Image(str(draw_case(task, case_id)), caption=case_id) for case_id in cases]})
    if "volumes" in task.experiment.run.wandb_artifacts:
        tracking.attach(f"{task.rows[0]}-seed{task.experiment.seed}-volumes", "volumes", task.folder / "volumes")


def _copy_scores(task: Task, run: wandb.Run) -> None:
    """Log every mean as `score/<metric>`, and a table with a line a case: picture and measures."""
    import wandb

    scores = task.folder / "scores"
    metrics = read_json(scores / "summary.json")["metrics"]
    found = {f"score/{name}": entry["value"] for name, entry in metrics.items() if entry["value"] is not None}
    with (scores / "per_case.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    columns = [name for name in lines[0] if name != "case_id"]
    table = wandb.Table(["case_id", "picture", *columns])
    for line in lines:
        picture = wandb.Image(str(draw_case(task, line["case_id"])))
        table.add_data(line["case_id"], picture, *(_cell(line[name]) for name in columns))
    run.log({**found, "scores": table})


def _wide(path: Path) -> tuple[list[str], list[list[Any]]]:
    """Return columns and lines of a printed table, of which the CSV file has a line a cell."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    with path.open(newline="") as file:
        for cell in csv.DictReader(file):
            lines.setdefault((cell["row"], cell["block"]), {})[cell["column"]] = _cell(cell["value"])
    columns = list(dict.fromkeys(column for line in lines.values() for column in line))
    return ["row", "", *columns], [[*key, *(line.get(column) for column in columns)] for key, line in lines.items()]


def _cell(text: str) -> float | str | None:
    """Return a cell of a CSV file as a number where it is one; an empty one as None."""
    try:
        return float(text) if text else None
    except ValueError:
        return text


_COPY = {"generate": _copy_volumes, "evaluate": _copy_scores}
