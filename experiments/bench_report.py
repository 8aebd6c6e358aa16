"""What a bench found: speed beside quality, what was asked of it, as JSON, Markdown, a table and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.metrics import metric
from experiments.stages import environment
from trace_lightning.artifacts import atomic_path, read_json, write_json, write_text

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.bench import Plan, Timing
    from experiments.load import Loaded

QUALITY = (
    "dice",
    "adjacent_difference_hu",
    "temporal_flickering",
    "body_flickering",
    "lung_correlation_z1",
    "lung_correlation_z4",
    "lung_texture_ratio",
)
DISTANCES = ("fid", "fd_alexnet")  # the first that could be computed is shown
HEADS = (
    ("eval./slice", "evaluations_per_slice", ".1f"),
    ("calls", "network_calls", "d"),
    ("slices/s", "slices_per_second", ".2f"),
    ("x literal", "ratio_to_literal", ".1f"),
    ("x abreast", "ratio_to_abreast", ".1f"),
    ("of peak", "flop_share", ".1%"),
)
DIGITS = {"adjacent_difference_hu": 1}


def collect(
    plan: Plan,
    timings: Mapping[str, Timing],
    refused: Mapping[str, str],
    scored: Sequence[Mapping[str, Path]],
    real: Sequence[Path],
    base: Loaded,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Return everything, JSON-ready.

    Args:
        plan: the rows, and what is asked of them.
        timings: of each row that ran.
        refused: row -> why it did not.
        scored: for each seed, row -> folder of its run.
        real: for each seed, folder of the real volumes' run.
        base: the experiment whose weights were used.
        seeds: of the trainings.
    """
    names, truth = [*QUALITY, *plan.quality["nearer"]], _means(real)
    rows = []
    for row in plan.rows:
        entry: dict[str, Any] = {"name": row.name, "label": row.label, "keys": row.keys, "pinned": row.pinned}
        if row.name in refused:
            rows.append(entry | {"reason": refused[row.name]})
            continue
        timing, folders = timings[row.name], [of_seed[row.volumes] for of_seed in scored]
        entry |= {
            "sample": timing.sample,
            "evaluations_per_slice": timing.evaluations_per_slice,
            "network_calls": timing.network_calls,
            "slices_per_second": timing.median,
            "slices_per_second_range": [min(timing.slices_per_second), max(timing.slices_per_second)],
            "ratio_to_literal": timing.median / timings[plan.literal].median,
            "ratio_to_abreast": timing.median / timings[plan.abreast].median,
            "flop_share": timing.flop_share,
            "peak_memory_bytes": timing.peak_memory_bytes,
            "timed": timing.timed,
            "quality": {name: value for name, value in _means(folders).items() if name in names},
            "distance": _distance(folders),
        }
        rows.append(entry)
    return {
        "experiment": base.experiment.name,
        "profile": base.experiment.profile,
        "overrides": list(base.overrides),
        "seeds": list(seeds),
        "threads": base.experiment.run.threads,
        "rows": rows,
        "caveats": _caveats(plan, base.experiment),
        "real": {name: truth[name] for name in names if name in truth},
        "checks": [*_speed_checks(plan, timings), *_quality_checks(plan, scored, refused)],
        "environment": environment(),
    }


def _caveats(plan: Plan, experiment: Any) -> list[str]:
    labels = {row.name: row.label for row in plan.rows}
    return [
        f"{', '.join(labels[name] for name in caveat['rows'])}: {caveat['says']} ({caveat['key']}={caveat['value']})"
        for caveat in plan.caveats
        if attrgetter(caveat["key"])(experiment) == caveat["value"]
    ]


def _means(folders: Sequence[Path]) -> dict[str, float]:
    """Return metric -> mean over the seeds of the mean over volumes."""
    found: dict[str, list[float]] = {}
    for folder in folders:
        for name, entry in read_json(folder / "scores" / "summary.json")["metrics"].items():
            if entry["value"] is not None:
                found.setdefault(name, []).append(entry["value"])
    return {name: statistics.fmean(values) for name, values in found.items()}


def _distance(folders: Sequence[Path]) -> dict[str, Any] | None:
    if not folders:
        return None
    metrics = read_json(folders[0] / "scores" / "summary.json")["metrics"]
    for name in DISTANCES:
        entry = metrics.get(name)
        if entry and entry["value"] is not None:
            return {"name": name, "value": _means(folders)[name], "n": entry["n"], "d": entry.get("d")}
    return None


def _speed_checks(plan: Plan, timings: Mapping[str, Timing]) -> list[dict[str, Any]]:
    """Return what the bench file asks of speeds, and the median of the turns' ratios; certain if all turns agree."""
    checks = []
    for row, over, least in plan.speed:
        if row in timings and over in timings:
            turns = zip(timings[row].slices_per_second, timings[over].slices_per_second, strict=True)
            ratios = [one / other for one, other in turns]
            extent = (min(ratios), max(ratios)) if len(ratios) > 1 else None
            checks.append(_check(f"{row} at least {least:g} x {over}", statistics.median(ratios), least, extent))
    return checks


def _check(what: str, found: float, least: float, extent: tuple[float, float] | None) -> dict[str, Any]:
    """Return whether something is at least so much; certain if all of its extent is on the same side."""
    certain = extent is not None and (extent[0] >= least or extent[1] < least)
    verdict = {"holds": found >= least, "certain": certain}
    return {"what": what, "found": found, "wanted": least, "interval": extent} | verdict


def _quality_checks(
    plan: Plan, scored: Sequence[Mapping[str, Path]], refused: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return whether rows are not inferior to another, and no farther from the real volumes, by the mean over cases."""
    from evaluation.compare import compare

    against, margins, nearer = (plan.quality[key] for key in ("against", "margins", "nearer"))
    checks = []
    for row in plan.quality["rows"] if scored else []:
        if row in refused or against in refused:
            continue
        runs = [(of_seed[row], of_seed[against]) for of_seed in scored]
        for name, found in compare(runs, list(margins)).items():
            if found is not None:
                what = f"{name}: {row} - {against} not below {margins[name]}"
                checks.append(_check(what, found.difference, margins[name], found.difference_interval))
        for name, found in compare([(b, a) for a, b in runs], nearer, to_real=True).items():
            if found is not None:
                what = f"{name}: {row} no farther from each real volume than {against}, which is farther by"
                checks.append(_check(what, found.difference, 0.0, found.difference_interval))
    return checks


def show(result: dict[str, Any], console: Console) -> None:
    """Print the tables and the checks."""
    from rich import box
    from rich.table import Table

    for heads, lines in _tables(result):
        grid = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
        for head in heads:
            grid.add_column(head, justify="right" if head else "left", no_wrap=True)
        for line in lines:
            grid.add_row(*line)
        console.print(grid)
        console.print()
    for sentence in _below(result):
        console.print(sentence, markup=False, soft_wrap=True, style="dim")


def write(result: dict[str, Any], folder: Path) -> None:
    """Write `bench.json`, `bench.md` and `bench.png`."""
    write_json(folder / "bench.json", result)
    text = ""
    for heads, lines in _tables(result):
        flat = [head.replace("\n", " ") for head in heads]
        table = [flat, ["---", *["---:"] * (len(heads) - 1)], *lines]
        text += "\n".join(f"| {' | '.join(line)} |" for line in table) + "\n\n"
    write_text(folder / "bench.md", text + "".join(f"- {line}\n" for line in _below(result)))
    if result["real"]:
        _plot(result, folder / "bench.png")


def write_pictures(plan: Plan, runs: Mapping[str, Path], real: Path, path: Path) -> None:
    """Draw one case of every row that made volumes of its own."""
    from evaluation.montage import write_montage
    from evaluation.rows import Row

    cases = tuple(read_json(real / "scores" / "summary.json")["cases"])
    rows = [
        Row(row.label, {}, volumes=runs[row.name] / "volumes", reference=real / "volumes", cases=cases)
        for row in plan.rows
        if row.name in runs and row.volumes == row.name
    ]
    write_montage(rows, path, "bench: the same weights, mask, report and seed")


def _tables(result: dict[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    return [_speeds(result), *([_qualities(result)] if result["real"] else [])]


def _speeds(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    heads = ["", *(head for head, _, _ in HEADS), "min-max", "GB"]
    lines = []
    for row in result["rows"]:
        if "reason" in row:
            lines.append([row["label"], *["-"] * (len(heads) - 1)])
            continue
        low, high = row["slices_per_second_range"]
        memory = "-" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 1e9:.2f}"
        cost = [f"{row[key]:{form}}" for _, key, form in HEADS]
        lines.append([row["label"], *cost, f"{low:.2f}-{high:.2f}" if low < high else "-", memory])
    return heads, lines


def _qualities(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    measures = list(result["real"])
    distance = next((row["distance"]["name"] for row in result["rows"] if row.get("distance")), None)
    heads = ["", *(metric(name).title for name in measures), *([distance] if distance else [])]
    lines = [["real volumes", *(_quality(result["real"], name) for name in measures), *([""] if distance else [])]]
    for row in result["rows"]:
        if "reason" not in row:
            line = [row["label"], *(_quality(row["quality"], name) for name in measures)]
            lines.append(
                [*line, *([f"{row['distance']['value']:.1f}" if row["distance"] else "-"] if distance else [])]
            )
    return heads, lines


def _quality(values: Mapping[str, float], name: str) -> str:
    return f"{values[name]:.{DIGITS.get(name, 3)}f}" if name in values else "-"


def _below(result: dict[str, Any]) -> list[str]:
    lines = [f"{row['label']}: not on these weights: {row['reason']}" for row in result["rows"] if "reason" in row]
    for row in result["rows"]:
        if row.get("timed"):
            lines.append(f"{row['label']}: timed on {row['timed']}")
    lines += [f"{row['label']}: always with {_keys(row['pinned'])}" for row in result["rows"] if row["pinned"]]
    lines += result["caveats"] if result["real"] else []  # they are about quality
    if result["overrides"]:
        lines.append(f"given for all rows, in place of what their names say: {', '.join(result['overrides'])}")
    if any(check["interval"] for check in result["checks"]):
        lines.append("in brackets: of speeds the least and most of the turns, of quality 95 % over cases and trainings")
    for check in result["checks"]:
        extent = " ({:.4g} to {:.4g})".format(*check["interval"]) if check["interval"] else ""
        found = f"found {check['found']:.4g}{extent}, wanted {check['wanted']:.4g}"
        verdict = ("holds" if check["holds"] else "DOES NOT HOLD") + ("" if check["certain"] else " (not certain)")
        lines.append(f"{verdict}: {check['what']}: {found}")
    distance = next((row["distance"] for row in result["rows"] if row.get("distance")), None)
    if distance:
        lines.append(f"{distance['name']}: n = {distance['n']}, d = {distance['d']}")
    env = result["environment"]
    where = env["gpu"] or f"{env['processor']}, {result['threads'] or env['cpus']} thread(s)"
    seeds = ", ".join(map(str, result["seeds"]))
    lines.append(
        f"{result['experiment']}, profile {result['profile']}, training seed(s) {seeds} (speed: the first); {where}; "
        f"torch {env['packages']['torch']}; GB: of a run not compiled, on a GPU only: a CPU's is the whole process's"
    )
    return lines


def _keys(keys: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in keys.items())


def _plot(result: dict[str, Any], path: Path) -> None:
    """Draw each measure over slices/s; the dashed line is the real volumes' own value."""
    from matplotlib.figure import Figure

    rows = [row for row in result["rows"] if "reason" not in row]
    measures = list(result["real"])
    figure = Figure(figsize=(4 * 3, 3.4 * -(-len(measures) // 3)), dpi=110, layout="constrained")
    axes = figure.subplots(-(-len(measures) // 3), 3, squeeze=False).flatten()
    for axis, name in zip(axes, measures, strict=False):
        for number, row in enumerate(rows):
            if name in row["quality"]:
                axis.semilogx(
                    row["slices_per_second"], row["quality"][name], "o", color=f"C{number}", label=row["label"]
                )
        axis.axhline(result["real"][name], color="grey", linestyle="--", linewidth=1)
        axis.set(title=name, xlabel="slices/s")
    for axis in axes[len(measures) :]:
        axis.axis("off")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
