"""Which metric sees what: volumes that are wrong in a known way, scored against the volumes that they were made from.

    python -m benchmarks.sensitivity --out runs/sensitivity --weights WEIGHTS --report docs/sensitivity.md

Writes `sensitivity.json` and a report, checks what `benchmarks/perturbations.py` says must and must not move, and ends
with exit code 1 where it does not hold. Scores are kept in the folder, so a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.perturbations import ADDED, COLUMNS, CORRECTED, LABELS, ORGANS, PERTURBATIONS, Chest
from evaluation import weights
from evaluation.label_maps import Rules, compare_label_maps
from evaluation.measure import Resources
from evaluation.metrics import Metric, metric
from evaluation.score import score
from evaluation.settings import Settings
from evaluation.uncertainty import interval
from trace_lightning.anatomy.grid import Grid
from trace_lightning.artifacts import Volume, read_json, write_json, write_labels, write_text, write_volume
from trace_lightning.config import PhantomConfig
from trace_lightning.data.phantom.scan import Scan
from trace_lightning.errors import UserError, run_command

HEIGHT_MM = 240.0  # of the slices that are kept, from the top of the scan down; every phantom is at least that high
IDENTITY = "none"
PACKAGES = ("numpy", "scipy", "torch", "lpips")


@dataclass(frozen=True)
class Size:
    """Of the benchmark.

    Attributes:
        volumes: phantoms, two or more.
        size: pixels a side, a multiple of 72, so that the shift is of whole pixels.
        slices: of each volume.
        seed: of all that is random.
    """

    volumes: int = 6
    size: int = 144
    slices: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.volumes < 2:
            raise UserError(f"--volumes {self.volumes}: another patient's volume needs two or more")
        if self.size < 72 or self.size % 72:
            raise UserError(f"--size {self.size}: a multiple of 72 pixels, so that 5 mm are whole pixels")
        if self.slices < 8:
            raise UserError(f"--slices {self.slices}: 8 or more")


@dataclass(frozen=True)
class Cell:
    """One metric of one perturbation.

    Attributes:
        value: mean over volumes, or the distance between the sets; None where there is none.
        low: of the 95 % interval of the difference from the volume itself, volume by volume; of a distance's interval.
        high: the same interval's other end.
        floor: real against real, of a distance between sets.
        moved: 1 risen, -1 fallen, 0 not moved.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    moved: int = 0


Matrix = dict[str, dict[str, Cell]]  # perturbation -> metric -> cell


def chests(size: Size) -> Iterator[tuple[str, Chest, Scan]]:
    """Yield the phantoms' upper `HEIGHT_MM`, with their organs."""
    config = PhantomConfig(
        num_train_patients=size.volumes, size=size.size, seed=size.seed, spacing_z_mm=[HEIGHT_MM / size.slices]
    )
    for number in range(1, size.volumes + 1):
        scan = Scan(config, "train", number)
        hu, labels = (array[-size.slices :] for array in scan.render())
        yield scan.case_id, Chest(hu, labels, scan.grid.spacing_mm), scan


def write_volumes(folder: Path, size: Size) -> None:
    """Write `<perturbation>/volumes/` and `<perturbation>/labels/`."""
    names, found, scans = zip(*chests(size), strict=True)
    grid = Grid(found[0].hu.shape, scans[0].grid.affine)  # one for all, so that another patient's volume fits
    for number, (name, chest) in enumerate(zip(names, found, strict=True)):
        other = found[(number + 1) % len(found)]
        for row, (key, perturbation) in enumerate(PERTURBATIONS.items()):
            hu, labels = perturbation.apply(chest, other, np.random.default_rng([size.seed, number, row]))
            write_volume(folder / key / "volumes" / f"{name}.nii.gz", Volume(hu.astype(np.float32), grid))
            write_labels(folder / key / "labels" / f"{name}.nii.gz", labels.astype(np.uint8), grid)


def measure(folder: Path, weights_dir: Path, jobs: int = 1) -> Matrix:
    """Score what `write_volumes` wrote, and compare each perturbation with the volumes themselves."""
    resources, wanted = Resources(weights_dir), [name for names in COLUMNS.values() for name in names]
    asked = [name for name in wanted if name not in LABELS]
    real, found = folder / IDENTITY, {}
    for key in PERTURBATIONS:
        print(f"scoring: {key}", flush=True)
        made = folder / key
        options = {"metrics": asked, "jobs": jobs, "resources": resources, "cache_dir": folder / "real"}
        of_volumes = score(made / "volumes", real / "volumes", made / "scores", settings=Settings(), **options)
        compare_label_maps(made / "labels", real / "labels", made / "fidelity", Rules(ids=ORGANS), jobs=jobs)
        found[key] = of_volumes["metrics"], _per_case(made / "scores"), _per_case(made / "fidelity")
    return {key: {name: _cell(name, found[key], found[IDENTITY]) for name in wanted} for key in found}


def _per_case(folder: Path) -> dict[str, Mapping]:
    return {path.stem: read_json(path)["measures"] for path in sorted((folder / "per_case").glob("*.json"))}


def _cell(name: str, found: tuple, identity: tuple) -> Cell:
    entry = found[0].get(name, {})
    if entry.get("statistic") == "set" or (name not in LABELS and entry.get("value") is None):
        low, floor = entry.get("low"), entry.get("floor")
        moved = int(low is not None and floor is not None and low > floor)
        return Cell(entry.get("value"), low, entry.get("high"), floor, moved)
    side, key = (2, name.removeprefix("labels.")) if name in LABELS else (1, name)
    cases = [case for case in found[side] if found[side][case].get(key) is not None]
    values, unchanged = (np.array([of[side][case][key] for case in cases]) for of in (found, identity))
    difference = float((values - unchanged).mean())
    low, high = interval(values - unchanged) or (None, None)
    seen = low is not None and not low <= 0 <= high and abs(difference) >= _half_a_digit(spec_of(name))
    return Cell(float(values.mean()), low, high, moved=int(np.sign(difference)) if seen else 0)


def spec_of(name: str) -> Metric:
    """Return what a column is called and how it is printed."""
    return metric(name.removeprefix("labels."))


def _half_a_digit(spec: Metric) -> float:
    """Return the least difference that is printed."""
    return 0.5 * 10.0**-spec.digits / (100 if spec.percent else 1)


def claims(key: str) -> dict[str, int]:
    """Return metric -> how it must move, of a perturbation."""
    row = PERTURBATIONS[key]
    return dict.fromkeys(row.rises, 1) | dict.fromkeys(row.falls, -1) | dict.fromkeys(row.stays, 0)


def violations(matrix: Matrix) -> list[str]:
    """Return what does not hold; metrics without a number (their weights are not there) are passed over."""
    words = {1: "rise", -1: "fall", 0: "stay"}
    return [
        f"{key}: {name} must {words[claim]}: {matrix[key][name]}, itself {matrix[IDENTITY][name].value}"
        for key in matrix
        for name, claim in claims(key).items()
        if matrix[key][name].value is not None and matrix[key][name].moved != claim
    ]


def report(matrix: Matrix, size: Size, wrong: Sequence[str]) -> str:
    """Return the matrix in Markdown, a table for each kind of metric."""
    lines = [
        "# Which metric sees what",
        "",
        f"{size.volumes} phantom volumes of {size.slices} x {size.size} x {size.size} voxels, each made wrong in a "
        "known way and scored against itself. Written by",
        "",
        f"    python -m benchmarks.sensitivity --volumes {size.volumes} --size {size.size} --slices {size.slices} "
        f"--seed {size.seed} --out runs/sensitivity --weights WEIGHTS --report docs/sensitivity.md",
        "",
        f"with Python {platform.python_version()}, {', '.join(_versions())}.",
        "",
        "▲ risen, ▼ fallen: the 95 % interval of the difference from the volume itself (bootstrap over volumes) "
        "excludes 0, and the difference would be printed; of a distance between sets: its interval lies above "
        "the distance of real from real. **Bold**: it must move so, = : it must not move, as "
        "`benchmarks/perturbations.py` says for a run of about this size; the run checks it: "
        + (f"{len(wrong)} did not hold." if wrong else "all of it held."),
        "",
        "A dash: its weights were not there.",
    ]
    for title, names in COLUMNS.items():
        specs = [spec_of(name) for name in names]
        heads = [f"{_head(s)}{f' ({s.printed_unit})' if s.percent else ''}" for s in specs]
        lines += ["", f"## {title}", "", f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(names)}"]
        for key, perturbation in PERTURBATIONS.items():
            cells = [_printed(matrix[key][name], spec_of(name), claims(key).get(name)) for name in names]
            lines.append(f"| {perturbation.title} | {' | '.join(cells)} |")
    lines += ["", "## What was done, and what follows", ""]
    for perturbation in PERTURBATIONS.values():
        lesson = f"; {perturbation.lesson}" if perturbation.lesson else ""
        lines.append(f"- **{perturbation.title}** ({perturbation.what}){lesson}.")
    lines += [
        "",
        "Blur, noise and offset leave the exact label maps as they are by construction. " + _of_sets(matrix),
        "",
        "What must and must not move is a description that is kept from now on, no blind prediction. Expected at "
        "first, and not borne out by a run:",
        "",
        *(f"- {text}" for text in CORRECTED),
        "",
        "Claimed once a run had shown it:",
        "",
        *(f"- {text}" for text in ADDED),
    ]
    return "\n".join(lines) + "\n"


def _of_sets(matrix: Matrix) -> str:
    floors = {name: cell.floor for name, cell in matrix[IDENTITY].items() if cell.floor is not None}
    if not floors:
        return "Distances between sets need weights."
    known = ", ".join(f"{_head(spec_of(name))} {value:.1f}" for name, value in floors.items())
    return (
        f"Real against real, by split halves: {known}. With so few volumes that is much: a distance that lies below it "
        "here may rise above it with more."
    )


def _head(spec: Metric) -> str:
    return spec.title.replace("-\n", "").replace("\n", " ")


def _printed(cell: Cell, spec: Metric, claim: int | None) -> str:
    if cell.value is None:
        return "–"
    text = f"{cell.value * (100 if spec.percent else 1):.{spec.digits}f}"
    text = f"{text.removeprefix('-') if float(text) == 0 else text}{ {1: ' ▲', -1: ' ▼', 0: ''}[cell.moved] }"
    return {None: text, 0: f"{text} ="}.get(claim, f"**{text}**")


def _versions() -> Iterator[str]:
    for package in PACKAGES:
        try:
            yield f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue


def run(folder: Path, size: Size, weights_dir: Path, jobs: int = 1) -> tuple[Matrix, list[str]]:
    """Write, score and check; return the matrix and what does not hold."""
    write_volumes(folder, size)
    matrix = measure(folder, weights_dir, jobs)
    wrong = violations(matrix)
    cells = {key: {name: asdict(cell) for name, cell in row.items()} for key, row in matrix.items()}
    write_json(folder / "sensitivity.json", {"size": asdict(size), "matrix": cells, "violations": wrong})
    return matrix, wrong


def main() -> int:
    """Run the command; return its exit code."""
    command = argparse.ArgumentParser(description="The metric sensitivity matrix on the phantom.")
    for name, default in asdict(Size()).items():
        command.add_argument(f"--{name}", type=int, default=default)
    command.add_argument("--weights", type=Path, default=None)
    command.add_argument("--jobs", type=int, default=1)
    command.add_argument("--out", type=Path, default=Path("runs/sensitivity"))
    command.add_argument("--report", type=Path, help="default: sensitivity.md in --out")
    given = command.parse_args()
    size = Size(given.volumes, given.size, given.slices, given.seed)
    matrix, wrong = run(given.out, size, weights.folder(given.weights), given.jobs)
    text = report(matrix, size, wrong)
    write_text(given.report or given.out / "sensitivity.md", text)
    print(text)
    for line in wrong:
        print(f"does not hold: {line}")
    return int(bool(wrong))


if __name__ == "__main__":
    run_command(main)
