"""Scores memorisation from folders: features of every slice, the nearest of the training set, pairs to look at."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from evaluation import along_z
from evaluation.distances import SetMetric
from evaluation.features.extract import Extraction
from evaluation.features.extractors import EXTRACTORS
from evaluation.features.store import FeatureStore
from evaluation.inputs import Frames, input_digest, read_any, volumes_in
from evaluation.memorisation import PERCENTILE, Memorisation, Neighbour, memorisation
from evaluation.references import on_grid
from evaluation.settings import Settings
from evaluation.weights import check_found, find, identity, why_absent
from evaluation.workers import each
from trace_lightning.artifacts import atomic_path, digest, sweep_temporary, write_json
from trace_lightning.errors import UserError

SIDES = ("generated", "training", "heldout")
ENOUGH = round(100 / PERCENTILE)  # held-out volumes, below which none of them is the nearest 5 %
PAIRS = 8  # drawn
DRAWN_INCH, DPI = 2.0, 110


@dataclass(frozen=True)
class Space:
    """In whose features, and how, slices are compared.

    Attributes:
        extractor: name in `EXTRACTORS`, of slices.
        settings: whose window, grid and first plane; each volume is seen on its own field of view.
        weights_dir: where weights lie.
        store: keeps features.
        device: where the network runs.
        frames: spacing and window of PNG frames.
    """

    extractor: str
    settings: Settings
    weights_dir: Path
    store: FeatureStore
    device: str = "cpu"
    frames: Frames | None = None

    @property
    def plane(self) -> str:
        """The protocol's first plane."""
        return self.settings.slices.planes[0]

    def grey(self, path: Path, spacing_mm: float | None) -> np.ndarray:
        """Return a volume's grey levels (D, H, W) uint8 on the protocol's grid, or on voxels of so many mm."""
        volume = read_any(path, self.frames)
        grid = self.settings.grid(volume.grid) if spacing_mm is None else volume.grid.at_spacing((spacing_mm,) * 3)
        return along_z.grey(on_grid(volume.hu, volume.grid, grid), self.settings.window_hu)

    def slices(self, path: Path) -> np.ndarray:
        """Return the images (n, rows, columns) uint8 that features are taken of."""
        views = self.settings.views()
        return views.slices.of(self.grey(path, views.spacing_mm(self.plane)), self.plane)

    def features(self, case_id: str, path: Path) -> np.ndarray:
        """Return the features of a volume's slices, (n, d) float32.

        Raises:
            UserError: the volume cannot be read, or the weights are not the network's.
        """
        # The file decides the grid of its volume; what else does stands here.
        grid = [self.settings.spacing_mm, list(self.settings.window_hu), repr(self.frames)]
        read = lambda spacing_mm: self.grey(path, spacing_mm)  # noqa: E731
        found = _extraction(self).case(case_id, input_digest(path), read, real=True, grid=grid)
        return found[self.extractor, self.plane]


def space_of(
    extractor: str,
    settings: Settings,
    weights_dir: Path,
    cache_dir: Path,
    *,
    device: str = "cpu",
    frames: Frames | None = None,
) -> Space:
    """Return a feature space whose weights are there and intact.

    Raises:
        UserError: no such extractor of slices, a package or weights are missing, or the weights are damaged.
    """
    of_slices = [name for name, found in EXTRACTORS.items() if found.inputs == "slices"]
    if extractor not in of_slices:
        raise UserError(f"--extractor: {extractor}: no network of slices; there are {', '.join(of_slices)}")
    package, weights = EXTRACTORS[extractor].package, EXTRACTORS[extractor].weights
    if package and find_spec(package) is None:
        raise UserError(f"{extractor}: needs the package {package}: pip install 'trace-lightning[metrics]'")
    path = find(weights, weights_dir)
    if path is None:
        raise UserError(f"{extractor}: {why_absent(weights, weights_dir)}")
    check_found(weights, path)
    return Space(extractor, settings, Path(weights_dir), FeatureStore(Path(cache_dir)), device, frames)


def compare_with_training(
    generated_dir: Path,
    training_dir: Path,
    heldout_dir: Path,
    out_dir: Path,
    space: Space,
    *,
    samples: int = 1000,
    jobs: int = 1,
    progress: Callable[[int, int, str], None] = lambda done, total, note="": None,
) -> dict:
    """Find the nearest training slice and volume of every generated one, and write what was found.

    Args:
        generated_dir: volumes in HU.
        training_dir: those that the method was trained on, all of them.
        heldout_dir: real volumes of patients who were not trained on.
        out_dir: receives `per_volume.csv`, `summary.json` and `nearest.png`.
        space: features.
        samples: of the bootstrap.
        jobs: processes; changes no number.
        progress: told (volumes done, in all, name).

    Returns:
        The summary, as written; `failed` holds the volumes that could not be read, and why.

    Raises:
        UserError: a folder is empty or holds nothing readable, or a volume is both trained on and held out.
    """
    out_dir = Path(out_dir)
    sweep_temporary(out_dir)
    folders = dict(zip(SIDES, (generated_dir, training_dir, heldout_dir), strict=True))
    paths = {side: volumes_in(folder) for side, folder in folders.items()}
    _check_apart(paths["training"], paths["heldout"])
    items = [(side, case, path) for side in SIDES for case, path in paths[side].items()]
    features: dict[str, dict[str, np.ndarray]] = {side: {} for side in SIDES}
    failed = {}
    for (side, case, _), (found, error) in each(_features, items, space, jobs, progress, lambda item: item[1]):
        if error is None:
            features[side][case] = found
        else:
            failed[f"{side}/{case}"] = error
    for side in SIDES:
        if not features[side]:
            raise UserError(f"{folders[side]}: no volume could be read: {next(iter(failed.values()))}")
    in_order = [dict(sorted(features[side].items())) for side in SIDES]
    found = memorisation(*in_order, samples=samples)

    few = found.volumes.n_heldout < ENOUGH
    protocol = space.settings.protocol()
    summary = {
        "extractor": space.extractor,
        "backbone": EXTRACTORS[space.extractor].backbone,
        "weights": identity(EXTRACTORS[space.extractor].weights, space.weights_dir),
        "protocol": protocol,
        "protocol_digest": digest(protocol),
        **{f"{side}_dir": os.path.relpath(folder, out_dir) for side, folder in folders.items()},
        "percentile": PERCENTILE,
        "warning": f"{found.volumes.n_heldout} held-out volumes: below {ENOUGH} the threshold of volumes lies between "
        "the nearest two"
        if few
        else None,
        "failed": dict(sorted(failed.items())),
        **found.to_json(),
        "nearer_volumes": [case for case in _by_suspicion(found) if _is_nearer(found, case)],
    }
    _write_csv(out_dir / "per_volume.csv", found)
    _draw(out_dir / "nearest.png", found, paths, space)
    write_json(out_dir / "summary.json", summary)
    return summary


def show(summary: Mapping) -> None:
    """Print the shares, and the volumes that are nearer than they should be."""
    from rich import box
    from rich.table import Table

    from evaluation.render import console_of

    console = console_of()
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    heads = (
        "",
        "nearer, %",
        "95 %",
        "copies",
        "generated",
        "held-out",
        "threshold",
        "n generated",
        "held-out",
        "training",
    )
    for head in heads:
        grid.add_column(head, justify="right" if head else "left", no_wrap=True)
    for kind in ("slices", "volumes"):
        level = summary[kind]
        bounds = "" if level["low"] is None else f"{100 * level['low']:.1f} … {100 * level['high']:.1f}"
        distances = (f"{level[key]:.4g}" for key in ("median_generated", "median_heldout", "threshold"))
        counts = (str(level[key]) for key in ("n_generated", "n_heldout", "n_training"))
        grid.add_row(kind, f"{100 * level['share_nearer']:.1f}", bounds, str(level["copies"]), *distances, *counts)
    console.print(grid)
    print(
        f"nearer: share of the generated that lie nearer to the training set than the nearest {PERCENTILE:.0f} % of "
        f"the held-out; {PERCENTILE:.0f} % is what fresh volumes have. Medians and threshold: distances in the "
        f"features of {summary['backbone']}."
    )
    if summary["warning"]:
        print(f"warning: {summary['warning']}")
    for case in summary["nearer_volumes"][:PAIRS]:
        one = summary["nearest"][case]
        print(
            f"nearer: {case} to {one['volume']} at {one['distance']:.4g} (held-out percentile {one['percentile']:.0f})"
        )
    for case, why in summary["failed"].items():
        print(f"failed: {case}: {why}")


def _check_apart(training: Mapping[str, Path], heldout: Mapping[str, Path]) -> None:
    """Refuse a volume on both sides, by name or by content."""
    if both := sorted(training.keys() & heldout.keys()):
        raise UserError(f"trained on and held out at once: {', '.join(both)}; held-out patients were not trained on")
    known = {input_digest(path): case for case, path in training.items()}
    for path in heldout.values():
        if (same := known.get(input_digest(path))) is not None:
            raise UserError(f"{path}: the same volume as {training[same]}; held-out patients were not trained on")


def _features(item: tuple[str, str, Path], space: Space) -> tuple[np.ndarray | None, str | None]:
    _, case_id, path = item
    try:
        return space.features(case_id, path), None
    except UserError as error:
        return None, str(error)


def _is_nearer(found: Memorisation, case_id: str) -> bool:
    return found.nearest[case_id].distance < found.volumes.threshold


def _by_suspicion(found: Memorisation) -> list[str]:
    return sorted(found.nearest, key=lambda case: (found.nearest[case].distance, case))


def _write_csv(path: Path, found: Memorisation) -> None:
    """Write a line for each generated volume, the nearest first."""
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", *Neighbour._fields, "nearer"])
        for case in _by_suspicion(found):
            writer.writerow([case, *found.nearest[case], int(_is_nearer(found, case))])


def _draw(path: Path, found: Memorisation, paths: Mapping[str, Mapping[str, Path]], space: Space) -> None:
    """Draw the nearest slice of each of the volumes with the nearest slices beside the training slice."""
    from matplotlib.figure import Figure

    shown = sorted(found.nearest, key=lambda case: (found.nearest[case].slice_distance, case))[:PAIRS]
    figure = Figure(figsize=(4 * DRAWN_INCH, DRAWN_INCH * 1.25 * -(-len(shown) // 2)), dpi=DPI, layout="constrained")
    axes = figure.subplots(-(-len(shown) // 2), 4, squeeze=False).reshape(-1, 2)
    for axis in axes.ravel():
        axis.axis("off")
    for (left, right), case in zip(axes, shown, strict=False):
        one = found.nearest[case]
        left.imshow(space.slices(paths["generated"][case])[one.slice], cmap="gray", vmin=0, vmax=255)
        right.imshow(
            space.slices(paths["training"][one.nearest_case])[one.nearest_slice], cmap="gray", vmin=0, vmax=255
        )
        left.set_title(f"generated {case}\nslice {one.slice}", fontsize=6)
        right.set_title(
            f"training {one.nearest_case}\nslice {one.nearest_slice}, at {one.slice_distance:.3g}", fontsize=6
        )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


@cache
def _extraction(space: Space) -> Extraction:
    """Return the extraction of a space; a process keeps it, and with it the network."""
    metric = SetMetric("nearest", "nearest", space.extractor, "slices", "frechet", published=False)
    return Extraction([metric], space.settings.views(), space.weights_dir, space.store, device=space.device)
