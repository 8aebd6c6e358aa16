"""Brickwork by steps and noise correlation, over several trainings: which defaults, and what they give elsewhere.

    python -m benchmarks.sampling --seeds 0 1 2 --report docs/sampling.md

The volumes of every point are made and scored as a table's rows (repeating the command goes on). The defaults are
chosen on the first half of the test cases; the report gives both halves. On the phantom: half an hour on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.metrics import metric
from evaluation.paired import paired
from evaluation.records import read_measures
from experiments.bench import BenchRow, Plan, make_volumes, rows_of
from experiments.pipeline import Request
from experiments.stages import environment
from trace_lightning.artifacts import atomic_path, read_json, write_json, write_text
from trace_lightning.errors import UserError, run_command

STEPS = (6, 10, 15, 25, 50)
CORRELATIONS = (0.0, 0.3, 0.5, 0.7, 0.8)
LITERAL = BenchRow("algorithm1", "Algorithm 1, DDIM-50", {"sample.solver": "ddim", "sample.num_inference_steps": 50})
ALONG_Z = ("adjacent_difference_hu", "lung_correlation_z1", "lung_correlation_z4", "lung_texture_ratio")
MEASURES = ("dice", *ALONG_Z, "body_flickering")
DICE_MARGIN = 0.01  # the chosen point is at most so far below Algorithm 1
ENOUGH = 0.01  # more steps are taken for a gain in the error along z above this
Values = Mapping[str, Sequence[float]]  # measure -> of each (seed, case), in one order for all rows


@dataclass(frozen=True)
class Point:
    """A row of the study.

    Attributes:
        row: its keys.
        steps: of the solver.
        correlation: of neighbouring slices' starting noise; None: Algorithm 1.
    """

    row: BenchRow
    steps: int
    correlation: float | None = None


def points() -> list[Point]:
    """Return Algorithm 1 as written, then the grid."""
    grid = []
    for correlation, steps in itertools.product(CORRELATIONS, STEPS):
        keys = {
            "sample.sampler": "brickwork",
            "sample.solver": "dpmpp_2m",
            "sample.all_pairs": "last",
            "sample.num_inference_steps": steps,
            "sample.noise_correlation": correlation,
        }
        grid.append(Point(BenchRow(f"s{steps}_r{round(100 * correlation)}", "", keys), steps, correlation))
    return [Point(LITERAL, 50), *grid]


def study(request: Request, seeds: Sequence[int]) -> tuple[list[str], dict[str, dict[str, Values]], Values]:
    """Make and score all points.

    Returns:
        The cases; for each half (`chosen on`, `elsewhere`) row -> values; the real volumes' values of each half.
    """
    rows = [point.row for point in points()]
    plan = Plan(tuple(rows), LITERAL.name, LITERAL.name, (), {})
    found, real, cases = {row.name: {} for row in rows}, {}, []
    for seed in seeds:
        base, loaded, refused = rows_of(request, seed, plan)
        if refused:
            raise UserError("; ".join(f"{name}: {why}" for name, why in refused.items()))
        folders = make_volumes(request, plan, base, loaded).folders
        cases = sorted(read_json(folders.ground_truth / "scores" / "summary.json")["cases"], key=_natural)
        for case in cases:
            real[seed, case] = _measures(folders.ground_truth, case) | {"lung_texture_ratio": 1.0}
            for row in rows:
                run = folders.run(loaded[row.name].experiment.name)
                found[row.name][seed, case] = _measures(run, case)
    halves = {"chosen on": cases[: len(cases) // 2], "elsewhere": cases[len(cases) // 2 :]}
    of_half = {half: {name: _of(by_case, some) for name, by_case in found.items()} for half, some in halves.items()}
    return cases, of_half, {half: _of(real, some) for half, some in halves.items()}


def choose(found: Mapping[str, Values], real: Values) -> Point:
    """Return the point with the least error along z of those whose Dice is Algorithm 1's but for the margin.

    Fewer steps are preferred where they cost no more than `ENOUGH`.
    """
    least = statistics.fmean(found[LITERAL.name]["dice"]) - DICE_MARGIN
    allowed = [p for p in points()[1:] if statistics.fmean(found[p.row.name]["dice"]) >= least]
    if not allowed:
        raise UserError(f"no point has a Dice of {least:.3f} or more; nothing can be chosen")
    errors = {p.row.name: error_along_z(found[p.row.name], real) for p in allowed}
    best = min(errors.values())
    return min((p for p in allowed if errors[p.row.name] <= best + ENOUGH), key=lambda p: (p.steps, errors[p.row.name]))


def error_along_z(values: Values, real: Values) -> float:
    """Return the mean over `ALONG_Z` of |mean / mean of the real volumes - 1|."""
    return statistics.fmean(abs(statistics.fmean(values[n]) / statistics.fmean(real[n]) - 1) for n in ALONG_Z)


def report(
    found: Mapping[str, Mapping[str, Values]], real: Mapping[str, Values], cases: Sequence[str], command: str, plot: str
) -> str:
    """Return the Markdown report."""
    chosen, half = choose(found["chosen on"], real["chosen on"]), len(cases) // 2
    others = choose(found["elsewhere"], real["elsewhere"])
    text = [
        "# Steps and noise correlation of brickwork",
        "",
        f"DPM-Solver++ with all pairs at the last step, on the weights of Ours; written by\n\n    {command}\n",
        f"Error along z: mean of |value / real - 1| over {', '.join(_title(n) for n in ALONG_Z)}. Chosen is, on "
        f"cases 1 to {half} alone, the least error of the points whose Dice is at most {DICE_MARGIN:g} below Algorithm "
        f"1's (DDIM-50), with fewer steps where they cost at most {ENOUGH:g}: **{chosen.steps} steps, correlation "
        f"{chosen.correlation:g}**. Cases {half + 1} to {len(cases)} would have chosen {others.steps} and "
        f"{others.correlation:g}. Values there, which nothing was chosen on:",
        "",
        f"![Measures by steps and correlation]({plot})",
        "",
        *_table(found["elsewhere"], real["elsewhere"], chosen),
        "",
        f"The same on cases 1 to {half}:",
        "",
        *_table(found["chosen on"], real["chosen on"], chosen),
        "",
        f"Chosen minus Algorithm 1 on cases {half + 1} to {len(cases)}, paired, 95 % t interval over cases and "
        "trainings:",
        "",
        *_differences(found["elsewhere"], chosen, cases[half:]),
    ]
    return "\n".join(text) + "\n"


def draw(found: Mapping[str, Values], real: Values, path: Path) -> None:
    """Draw each measure by steps, a line for each correlation."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(12, 6.5), layout="constrained", sharex=True)
    shades = matplotlib.colormaps["viridis"]
    for axis, name in zip(axes.flat, (*MEASURES[:-1], "error"), strict=True):
        for index, correlation in enumerate(CORRELATIONS):
            line = [p for p in points() if p.correlation == correlation]
            axis.plot(
                [p.steps for p in line],
                [_mean(found[p.row.name], real, name) for p in line],
                "o-",
                color=shades(index / len(CORRELATIONS)),
                label=f"correlation {correlation:g}",
            )
        axis.axhline(_mean(found[LITERAL.name], real, name), color="grey", ls=":", label=LITERAL.label)
        if name != "error":
            axis.axhline(statistics.fmean(real[name]), color="black", ls="--", label="real volumes")
        axis.set(title="Error along z" if name == "error" else _title(name), xscale="log")
        axis.set_xticks(STEPS, [str(steps) for steps in STEPS], minor=False)
        axis.minorticks_off()
    for axis in axes[1]:
        axis.set_xlabel("steps")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)


def _title(name: str) -> str:
    return metric(name).title.replace("\n", " ")


def _natural(case: str) -> tuple:
    return tuple(int(part) if part.isdigit() else part for part in case.split("_"))


def _measures(run: Path, case: str) -> dict[str, float]:
    measures = read_measures(run / "scores", case)
    return {name: measures[name] for name in MEASURES if measures.get(name) is not None}


def _of(by_case: Mapping[tuple[int, str], Mapping[str, float]], cases: Sequence[str]) -> Values:
    some = [values for (_, case), values in by_case.items() if case in cases]
    return {name: [values[name] for values in some] for name in MEASURES}


def _mean(values: Values, real: Values, name: str) -> float:
    return error_along_z(values, real) if name == "error" else statistics.fmean(values[name])


def _table(found: Mapping[str, Values], real: Values, chosen: Point) -> list[str]:
    heads = ["steps", "correlation", *(_title(name) for name in MEASURES), "error along z"]
    lines = [f"| {' | '.join(heads)} |", f"|{' ---: |' * len(heads)}"]
    lines.append(f"| real | | {' | '.join(f'{statistics.fmean(real[name]):.3f}' for name in MEASURES)} | 0 |")
    for point in points():
        values = [f"{_mean(found[point.row.name], real, name):.3f}" for name in (*MEASURES, "error")]
        name = ["Algorithm 1, 50", ""] if point.correlation is None else [str(point.steps), f"{point.correlation:g}"]
        cells = [*name, *values]
        lines.append(f"| {' | '.join(f'**{c}**' if point == chosen else c for c in cells)} |")
    return lines


def _differences(found: Mapping[str, Values], chosen: Point, cases: Sequence[str]) -> list[str]:
    lines = ["| | difference | interval |", "| --- | ---: | ---: |"]
    for name in MEASURES:
        ours, literal = found[chosen.row.name][name], found[LITERAL.name][name]
        order = [divmod(i, len(cases)) for i in range(len(ours))]  # (training, case), as `study` reads them
        trainings, of_case = zip(*order, strict=True)
        result = paired(ours, literal, of_case, trainings)
        low, high = result.difference_interval or (result.difference, result.difference)
        lines.append(f"| {_title(name)} | {result.difference:+.3f} | {low:+.3f} to {high:+.3f} |")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling", description=__doc__.split("\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--profile", default="phantom")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="K")
    parser.add_argument("--cases", type=int, default=8, metavar="N", help="test cases of the phantom (8)")
    parser.add_argument("--report", type=Path, default=Path("docs/sampling.md"), metavar="FILE.md")
    given = parser.parse_args(arguments)
    if given.cases < 4:
        raise UserError(f"--cases {given.cases}: 4 or more, two for each half")
    overrides = (
        f"data.phantom.num_valid_patients={given.cases}",
        f"data.num_test_patients={given.cases}",
        f"evaluate.metrics=[{','.join(MEASURES)}]",
        *given.overrides,
    )
    cases, found, real = study(Request("ours", given.profile, overrides=overrides), given.seeds)
    plot = given.report.with_suffix(".png")
    draw(found["elsewhere"], real["elsewhere"], plot)
    command = f"python -m benchmarks.sampling --profile {given.profile} --cases {given.cases} --seeds "
    command += " ".join(map(str, given.seeds))
    write_text(given.report, report(found, real, cases, command, plot.name))
    write_json(given.report.with_suffix(".json"), {"found": found, "real": real, "environment": environment()})
    print(f"written: {given.report}, {plot}")
    return 0


if __name__ == "__main__":
    run_command(main)
