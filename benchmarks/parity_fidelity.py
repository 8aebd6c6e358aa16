"""Dice, Jaccard and HD95 beside MONAI, SimpleITK, surface-distance and medpy: 20 warped organs, 256 x 256 x 128."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.row import Row, timed
from evaluation.fidelity import Overlap, hausdorff_mm, overlaps

SHAPE, SPACING_MM, ORGANS = (128, 256, 256), (3.0, 1.5, 1.5), 20
INPUT = f"{ORGANS} labels, 256x256x128"
FOREIGN = Path(__file__).parent / "foreign_fidelity.py"


def warped_organs(
    shape: tuple[int, int, int] = SHAPE, organs: int = ORGANS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return a map of ellipsoids of 15 to 45 mm radius, and the same warped by a smooth random field: uint8."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    places = [np.arange(n) * step for n, step in zip(shape, SPACING_MM, strict=True)]
    real = np.zeros(shape, np.uint8)
    for organ in range(1, organs + 1):
        centre = rng.uniform(0.15, 0.85, 3) * np.multiply(shape, SPACING_MM)
        radius = rng.uniform(15, 45, 3)
        parts = [((x - c) / r) ** 2 for x, c, r in zip(places, centre, radius, strict=True)]
        real[parts[0][:, None, None] + parts[1][:, None] + parts[2] < 1] = organ
    coarse = [ndimage.zoom(rng.normal(size=(8, 8, 8)), np.divide(shape, 8), order=1) for _ in shape]
    grid = np.indices(shape, np.float32)
    for axis, amount in enumerate((2, 4, 4)):  # voxels
        grid[axis] += amount * coarse[axis]
    return ndimage.map_coordinates(real, grid, order=0, mode="nearest"), real


def rows(others: Path | None) -> Iterator[Row]:
    """Yield the rows."""
    made, real = warped_organs()
    ids = [int(i) for i in np.unique(real) if i]
    found, seconds = timed(lambda: overlaps(made, real, SPACING_MM, {str(i): [i] for i in ids}), repeats=3)
    ours = [found[str(i)] for i in ids]
    yield from _monai(made, real, ids, ours, seconds)
    yield from _simpleitk(made, real, ids, ours, seconds)
    yield from _foreign(others, made, real, ids, ours, seconds)


def _mean(ours: list[Overlap], name: str) -> float:
    return float(np.mean([getattr(overlap, name) for overlap in ours]))


def _monai(made: np.ndarray, real: np.ndarray, ids: list[int], ours: list[Overlap], seconds: float) -> Iterator[Row]:
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou

    def one_hot(labels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.stack([labels == i for i in ids])[None].astype(np.float32))

    tool = f"MONAI {importlib.metadata.version('monai')}"
    maps, encoding = timed(lambda: [one_hot(labels) for labels in (made, real)])
    distance = {"include_background": True, "percentile": 95, "spacing": SPACING_MM}
    total = encoding
    for name, compute, options, tolerance in (
        ("dice", compute_dice, {}, 1e-6),
        ("jaccard", compute_iou, {}, 1e-6),
        ("hd95_mm", compute_hausdorff_distance, distance, 1e-4),
    ):
        theirs, spent = timed(lambda compute=compute, options=options: compute(*maps, **options).double().numpy()[0])
        total += spent
        worst = float(np.abs(theirs - [getattr(overlap, name) for overlap in ours]).max())
        note = f"worst label differs by {worst:.1e}"
        yield Row(f"{name}, {INPUT}", tool, float(theirs.mean()), _mean(ours, name), spent, None, tolerance, note)
    note = "all three, one-hot encoding included"
    value = _mean(ours, "hd95_mm")
    yield Row(f"dice + jaccard + hd95_mm, {INPUT}", tool, float(theirs.mean()), value, total, seconds, 1e-4, note)


def _simpleitk(
    made: np.ndarray, real: np.ndarray, ids: list[int], ours: list[Overlap], seconds: float
) -> Iterator[Row]:
    try:
        import SimpleITK as sitk
    except ModuleNotFoundError:
        yield Row(f"dice, {INPUT}", "SimpleITK", None, _mean(ours, "dice"), note="not installed (the extra itk)")
        return
    tool = f"SimpleITK {importlib.metadata.version('SimpleITK')}"
    images = [sitk.GetImageFromArray(labels) for labels in (real, made)]
    for image in images:
        image.SetSpacing(SPACING_MM[::-1])
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    _, spent = timed(lambda: overlap.Execute(*images))
    for name, get in (("dice", overlap.GetDiceCoefficient), ("jaccard", overlap.GetJaccardCoefficient)):
        theirs = float(np.mean([get(i) for i in ids]))
        yield Row(f"{name}, {INPUT}", tool, theirs, _mean(ours, name), spent, None, 1e-9)
    label = ids[0]
    hausdorff = sitk.HausdorffDistanceImageFilter()
    _, spent = timed(lambda: hausdorff.Execute(*(image == label for image in images)))
    mine, own = timed(lambda: hausdorff_mm(made == label, real == label, SPACING_MM, 100))
    theirs, note = hausdorff.GetHausdorffDistance(), "it has no percentile"
    yield Row("hd100_mm, one label", tool, theirs, mine, spent, own, 1e-4, note)


def _foreign(
    others: Path | None, made: np.ndarray, real: np.ndarray, ids: list[int], ours: list[Overlap], seconds: float
) -> Iterator[Row]:
    """Yield the rows of packages that live in an environment of their own."""
    differs = {
        "surface-distance": "another definition: surface elements weighted by area",
        "medpy": "another definition: percentile over both directions pooled",
    }
    why = "not run: needs an environment with benchmarks/requirements.txt (make bench-evaluation)"
    printed = None
    if others is not None:
        with tempfile.TemporaryDirectory() as folder:
            np.savez(Path(folder) / "maps.npz", made=made, real=real, ids=ids, spacing_mm=SPACING_MM)
            command = [str(others), str(FOREIGN), str(Path(folder) / "maps.npz")]
            done = subprocess.run(command, capture_output=True, text=True)
        printed = done.stdout if done.returncode == 0 else None
        why = f"not run: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}"
    if printed is None:
        for tool in differs:
            yield Row(f"hd95_mm, {INPUT}", tool, None, _mean(ours, "hd95_mm"), None, seconds, note=why)
        return
    for entry in json.loads(printed):
        name, tool = entry["name"], entry["tool"]
        same = name != "hd95_mm"
        note = "" if same else differs[tool.split()[0]]
        spent = entry["seconds"]
        mine = None if same else seconds
        tolerance = 1e-6 if same else None
        yield Row(f"{name}, {INPUT}", tool, entry["value"], _mean(ours, name), spent, mine, tolerance, note)
