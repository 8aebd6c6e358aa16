"""Draws slices of every row's volume of one case: axial, coronal and sagittal, the real volume first."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.inputs import volumes_in
from evaluation.rows import Row
from trace_lightning.anatomy import threshold
from trace_lightning.anatomy.labels import LUNG
from trace_lightning.artifacts import Volume, atomic_path, read_volume

WINDOW_HU = (-1000.0, 400.0)
PLANES = ("axial", "coronal", "sagittal")
ROW_HEIGHT_INCH, LABEL_INCH, DPI = 2.2, 1.6, 110
LABEL_CHARACTERS = 20  # a line: a longer one would take the pictures' room


def planes(volume: Volume, centre: Sequence[float]) -> list[tuple[np.ndarray, float]]:
    """Return the axial, coronal and sagittal slice through a point, head up, each with its pixels' height over width.

    Args:
        volume: HU and grid.
        centre: the point as shares (z, y, x) of the volume's extent, in [0, 1).
    """
    z, y, x = (int(share * n) for share, n in zip(centre, volume.hu.shape, strict=True))
    dz, dy, dx = volume.grid.spacing_mm
    return [
        (volume.hu[z], dy / dx),
        (volume.hu[::-1, y], dz / dx),
        (volume.hu[::-1, :, x], dz / dy),
    ]


def lung_centre(volume: Volume) -> tuple[float, float, float]:
    """Return where to cut, as shares of the extent: the lungs' middle height and depth, and through the right lung."""
    found = np.argwhere(threshold.segment(volume.hu, volume.grid.spacing_mm) == LUNG)
    if not len(found):
        return 0.5, 0.5, 0.5
    centre = np.median(found[:, 0]), np.median(found[:, 1]), np.quantile(found[:, 2], 0.25)
    z, y, x = (np.array(centre) + 0.5) / volume.hu.shape
    return float(z), float(y), float(x)


def write_montage(rows: Sequence[Row], path: Path, title: str) -> None:
    """Write a PNG of the first scored case: the real volume, then every row that has it.

    Args:
        rows: of the table; rows without volumes are left out.
        path: of the PNG.
        title: printed above.
    """
    from matplotlib.figure import Figure

    first = next(row for row in rows if row.reference is not None)
    case_id = first.cases[0]
    made = [(row.label, row.volumes) for row in rows if not row.is_real and case_id in row.cases]
    folders = [("Real", first.reference), *made]
    shown = [(label, volumes_in(folder)[case_id]) for label, folder in folders if folder is not None]

    real = read_volume(shown[0][1])
    centre = lung_centre(real)
    widths = [image.shape[1] / (image.shape[0] * aspect) for image, aspect in planes(real, centre)]
    inches = LABEL_INCH + ROW_HEIGHT_INCH * sum(widths), 0.6 + ROW_HEIGHT_INCH * len(shown)
    figure = Figure(figsize=inches, dpi=DPI, layout="constrained", facecolor="black")
    low, high = WINDOW_HU
    figure.suptitle(f"{title}\ncase {case_id}, {low:.0f} to {high:.0f} HU", color="white", fontsize=9)
    axes = figure.subplots(len(shown), len(PLANES), squeeze=False, width_ratios=widths)
    for line, (label, volume_path) in zip(axes, shown, strict=True):
        volume = read_volume(volume_path)
        for axis, name, (image, aspect) in zip(line, PLANES, planes(volume, centre), strict=True):
            axis.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if label == shown[0][0]:
                axis.set_title(name, color="white", fontsize=9)
        text = textwrap.fill(label, LABEL_CHARACTERS)
        line[0].set_ylabel(text, color="white", fontsize=9, rotation=0, ha="right", va="center")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="black")
