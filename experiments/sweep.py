"""Sweeps: W&B's own files, checked against the keys of the experiments, and run here without W&B where that is wanted.

A file is what `wandb sweep` takes. Its command is `python -m experiments run EXPERIMENT ... ${args_no_hyphens}`, so an
agent says `key=value` as a person would.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import pipeline
from experiments.load import as_yaml, load, read_yaml, shown
from experiments.pipeline import Request
from trace_lightning.artifacts import read_json
from trace_lightning.errors import UserError

PROGRAM = ("-m", "experiments", "run")
POINT = "${args_no_hyphens}"
MACROS = ("${env}", "${interpreter}", POINT)
SCORE = "score/"  # prefix of what `evaluate` logs; the rest is a metric's name
LOSS = "val/loss"
METHODS = ("grid", "random", "bayes")
RANGES = ("min", "max")
OPTIONS = ("--profile", "--seed")


@dataclass(frozen=True)
class Sweep:
    """A sweep's file.

    Attributes:
        path: the file.
        metric: what it optimises, `val/loss` or `score/<metric>`.
        maximize: whether more of it is better.
        arguments: of `python -m experiments run`, without the point's.
        choices: key -> the values that are tried; of a range its ends and its middle.
    """

    path: Path
    metric: str
    maximize: bool
    arguments: tuple[str, ...]
    choices: dict[str, list[Any]]

    def points(self) -> Iterator[dict[str, Any]]:
        """Yield every combination of the values: key -> value."""
        for values in itertools.product(*self.choices.values()):
            yield dict(zip(self.choices, values, strict=True))

    def argv(self, point: dict[str, Any]) -> list[str]:
        """Return the arguments of `python -m experiments` at a point, as an agent would give them."""
        return ["run", *self.arguments, *(f"{key}={value}" for key, value in point.items())]

    def request(self, point: dict[str, Any]) -> Request:
        """Return what a point asks for, W&B left out."""
        from experiments.__main__ import parser

        options, others = parser().parse_known_args(self.argv(point))
        overrides = [pair for pair in (*options.overrides, *others) if not pair.startswith("run.wandb")]
        return Request(options.target, options.profile, (options.seed,), tuple(overrides))


def read_sweep(path: Path) -> Sweep:
    """Read a sweep's file and load the experiment at each of its points.

    Raises:
        UserError: a part is missing or not of W&B's form, or a point has a key or value that the experiment refuses.
    """
    data = read_yaml(path)
    for part in ("method", "metric", "parameters", "command"):
        if not data.get(part):
            raise UserError(f"{shown(path)}: {part} is missing")
    if data["method"] not in METHODS:
        raise UserError(f"{shown(path)}: method={data['method']}: W&B has {', '.join(METHODS)}")
    metric = data["metric"]
    if not isinstance(metric, dict) or metric.get("goal") not in ("minimize", "maximize"):
        raise UserError(f"{shown(path)}: metric is {{name: ..., goal: minimize or maximize}}; got {metric}")
    _need_metric(path, metric.get("name"))
    if not isinstance(data["parameters"], dict):
        raise UserError(f"{shown(path)}: parameters maps keys to values; got {data['parameters']}")
    choices = {key: _values(path, key, given) for key, given in data["parameters"].items()}
    arguments = _arguments(path, data["command"])
    sweep = Sweep(Path(path), metric["name"], metric["goal"] == "maximize", arguments, choices)
    for point in sweep.points():
        request = sweep.request(point)
        try:
            load(request.target, request.profile, request.overrides, request.seeds[0], complete=False)
        except UserError as error:
            raise UserError(f"{shown(path)}: {' '.join(sweep.argv(point)[-len(point) :])}: {error}") from None
    return sweep


def run_sweep(sweep: Sweep, dry_run: bool = False) -> int:
    """Run the points one after the other, print their metric; return the exit code, the worst of the points'.

    Of a range its ends and its middle are run. A point that was done before is only read.
    """
    found, codes = [], [0]
    for point in sweep.points():
        print(f"python -m experiments {shlex.join(sweep.argv(point))}", flush=True)
        if dry_run:
            continue
        request = sweep.request(point)
        resolved = pipeline.resolve(request)
        codes.append(pipeline.complete(resolved, request))
        found.append((point, _result(sweep.metric, resolved)))
    if found:
        print(table(sweep, found))
    return max(codes)


def table(sweep: Sweep, found: Sequence[tuple[dict[str, Any], float | None]]) -> str:
    """Return the points with their metric, the best one marked, as lines of text."""
    known = [value for _, value in found if value is not None]
    best = (max if sweep.maximize else min)(known) if known else None
    lines = [[*sweep.choices, sweep.metric, ""]]
    for point, value in found:
        cell, mark = ("-" if value is None else f"{value:.5g}"), "best" if value == best and value is not None else ""
        lines.append([*(as_yaml(entry) for entry in point.values()), cell, mark])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _result(metric: str, resolved: pipeline.Resolved) -> float | None:
    """Return the metric of a point that was run; None where it is missing."""
    name = resolved.rows[0].experiment.name
    stage, file = ("train", "training.json") if metric == LOSS else ("evaluate", "scores/summary.json")
    task = next(task for task in resolved.tasks if task.name == stage and name in task.rows)
    if not (task.folder / file).is_file():
        return None
    metrics = read_json(task.folder / file)["metrics"]
    return metrics.get(metric) if metric == LOSS else metrics.get(metric.removeprefix(SCORE), {}).get("value")


def _need_metric(path: Path, name: Any) -> None:
    from evaluation.metrics import find_metric

    known = name == LOSS or (str(name).startswith(SCORE) and find_metric(str(name).removeprefix(SCORE)) is not None)
    if not known:
        raise UserError(
            f"{shown(path)}: metric.name={name}: expected {LOSS}, or {SCORE} and a name that "
            f"`python -m evaluation metrics` lists, as {SCORE}dice"
        )


def _values(path: Path, key: str, given: Any) -> list[Any]:
    """Return the values of a parameter that are tried; of a range the ends and the middle."""
    if not isinstance(given, dict) or "parameters" in given:
        raise UserError(
            f"{shown(path)}: {key}: write nested keys with dots, as train.lr: {{values: [...]}}; got {given}"
        )
    if "values" in given:
        values = given["values"]
    elif "value" in given:
        values = [given["value"]]
    elif set(RANGES) <= set(given):
        low, high = (given[end] for end in RANGES)
        if not all(isinstance(end, int | float) for end in (low, high)):
            raise UserError(f"{shown(path)}: {key}: min and max are numbers; got {low!r} and {high!r}")
        middle = (low * high) ** 0.5 if str(given.get("distribution", "")).startswith("log") else (low + high) / 2
        whole = isinstance(low, int) and isinstance(high, int)
        values = [low, round(middle) if whole else middle, high]
    else:
        raise UserError(f"{shown(path)}: {key}: expected values, value, or min and max; got {given}")
    if not isinstance(values, list) or not values:
        raise UserError(f"{shown(path)}: {key}: values is a list; got {values}")
    if None in values:
        raise UserError(f"{shown(path)}: {key}: an agent would write null as the word None; leave the key out instead")
    return values


def _arguments(path: Path, command: Any) -> tuple[str, ...]:
    """Return what a command gives to `python -m experiments run`, the point left out."""
    words = [str(word) for word in command] if isinstance(command, list) else []
    plain = [word for word in words if word not in MACROS]
    if tuple(plain[: len(PROGRAM)]) != PROGRAM or POINT not in words:
        form = '["${env}", "${interpreter}", -m, experiments, run, EXPERIMENT, "${args_no_hyphens}"]'
        raise UserError(f"{shown(path)}: command is of the form {form}; got {command}")
    given = plain[len(PROGRAM) :]
    if others := [word for word in given if word.startswith("-") and word.partition("=")[0] not in OPTIONS]:
        raise UserError(f"{shown(path)}: command: {others[0]}: a point is given {' and '.join(OPTIONS)} and keys only")
    return tuple(given)
