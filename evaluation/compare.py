"""Compares two methods on the same cases, volume by volume, over one or several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from evaluation.metrics import find_metric, metric
from evaluation.paired import Paired, paired
from evaluation.records import read_measures, read_summary, scores_of
from evaluation.render import console_of
from evaluation.score import SUMMARY
from trace_lightning.errors import UserError

DEFAULT_METRICS = (
    "dice",
    "hd95_mm",
    "mask_dice_lung",
    "mask_dice_bone",
    "skill_lung",
    "skill_bone",
    "adjacent_difference_hu",
    "border_difference_hu",
    "within_difference_hu",
    "lung_correlation_z1",
    "lung_texture_ratio",
)


def compare(
    runs: Sequence[tuple[Path, Path]], names: Sequence[str] = DEFAULT_METRICS, to_real: bool = False
) -> dict[str, Paired | None]:
    """Compare A with B over pairs of runs (trainings).

    Args:
        runs: (run A, run B) folders with `scores/` in them, one pair a seed.
        names: metrics.
        to_real: compare not the values but how far each is from that of its own real volume; for metrics that a real
            volume has too.

    Returns:
        Metric -> comparison, or None where the volumes have no such number.

    Raises:
        UserError: a run is not scored, a pair is named twice, or two were scored on other cases or by another protocol.
    """
    places = [(Path(a).resolve(), Path(b).resolve()) for a, b in runs]
    if twice := [pair for pair, place in zip(runs, places, strict=True) if places.count(place) > 1]:
        raise UserError(f"{twice[0][0]} and {twice[0][1]} are named twice; a pair of runs counts once")
    pairs = [(_load(a), _load(b)) for a, b in runs]
    first = pairs[0][0]
    for pair, (a, b) in zip(runs, pairs, strict=True):
        for run, scores in zip(pair, (a, b), strict=True):
            if odd := sorted(scores["cases"].keys() ^ first["cases"].keys()):
                raise UserError(
                    f"{runs[0][0]} and {run} were scored on other cases ({', '.join(odd)}); a paired comparison needs "
                    "the same"
                )
            if scores["protocol_digest"] != first["protocol_digest"]:
                raise UserError(f"{run} and {runs[0][0]} were scored by different protocols; score them again alike")
    for name in names:
        if find_metric(name) is None:
            raise UserError(f"{name!r} is no metric; see `metrics` of {runs[0][0]}/scores/{SUMMARY}")
    return {name: _paired(name, pairs, to_real) for name in names}


def _load(run: Path) -> dict:
    scores = scores_of(run)
    summary = read_summary(scores)
    cases = {case_id: read_measures(scores, case_id) for case_id in summary["cases"]}
    return {"protocol_digest": summary["protocol_digest"], "cases": cases}


def _paired(name: str, pairs: Sequence[tuple[dict, dict]], to_real: bool) -> Paired | None:
    name = metric(name).name
    values = [
        (_value(a["cases"][case_id], name, to_real), _value(b["cases"][case_id], name, to_real), case_id, training)
        for training, (a, b) in enumerate(pairs)
        for case_id in a["cases"]
    ]
    return paired(*zip(*values, strict=True))


def _value(case: dict[str, float | None], name: str, to_real: bool) -> float | None:
    value, real = case.get(name), case.get(f"{name}_real")
    if not to_real or value is None:
        return value
    return None if real is None else abs(value - real)


def show(found: dict[str, Paired | None], runs: Sequence[tuple[Path, Path]]) -> None:
    """Print a comparison."""
    from rich import box
    from rich.table import Table

    console = console_of()
    for a, b in runs:
        console.print(f"A = {a}   B = {b}", markup=False)
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    grid.add_column("", no_wrap=True)
    for head in ("A", "B", "A - B", "95 %", "A / B", "95 %", "A lower"):
        grid.add_column(head, justify="right", no_wrap=True)
    for name, result in found.items():
        if result is None:
            grid.add_row(name, "-")
            continue
        ratio = "-" if result.ratio is None else f"{result.ratio:.3f}"
        grid.add_row(
            name,
            f"{result.mean_a:.3f}",
            f"{result.mean_b:.3f}",
            f"{result.difference:+.3f}",
            _extent(result.difference_interval),
            ratio,
            _extent(result.ratio_interval),
            f"{result.lower}/{result.volumes}",
        )
    console.print(grid)
    cases = max((result.cases for result in found.values() if result), default=0)
    over = "cases and trainings (pairs of runs)" if len(runs) > 1 else "cases, of these trainings"
    console.print(
        f"{cases} cases, {len(runs)} pair(s) of runs; 95 %: t interval over {over}; A / B: mean of the volumes' ratios"
    )


def _extent(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.3f} … {bounds[1]:.3f}"


def to_json(found: dict[str, Paired | None], runs: Sequence[tuple[Path, Path]]) -> dict:
    """Return a comparison, JSON-ready."""
    results = {name: None if result is None else asdict(result) for name, result in found.items()}
    return {"runs": [[str(a), str(b)] for a, b in runs], "metrics": results}
