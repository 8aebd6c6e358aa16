"""Times samplers on one set of weights in one process, beside the quality of the volumes that they make.

The volumes of a row are made and scored as those of a table (what is done is kept); then, with nothing else running,
all rows are timed in turns. Nothing here knows what a row does: `bench.yaml` says which keys it sets.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments import load, pipeline
from experiments.load import Loaded, Row, Table
from experiments.methods import method_of, resolve
from experiments.pipeline import Request, Resolved
from experiments.stages import case_seed, only
from experiments.tasks import GROUND_TRUTH, Folders, tasks_of
from trace_lightning.errors import UserError
from trace_lightning.protocol import Case, Generated

FILE = load.FOLDER / "bench.yaml"
PEAK_STEPS = 3  # from then on a second-order solver remembers all that it needs


@dataclass(frozen=True)
class BenchRow:
    """A way of sampling.

    Attributes:
        name: of its folder, and in `bench.json`.
        label: as it is printed.
        keys: what it overrides, where the command line gives nothing else.
        pinned: what it overrides, whatever the command line gives.
        volumes_of: the row whose volumes are the same; None: its own.
        timed_slices: lowest slices of each case that are timed; None: all.
        timed_volumes: cases that are timed; None: all.
    """

    name: str
    label: str
    keys: dict[str, Any]
    volumes_of: str | None = None
    timed_slices: int | None = None
    timed_volumes: int | None = None
    pinned: dict[str, Any] = field(default_factory=dict)

    @property
    def volumes(self) -> str:
        """The row that makes its volumes."""
        return self.volumes_of or self.name


@dataclass(frozen=True)
class Plan:
    """`bench.yaml`.

    Attributes:
        common: keys of all rows, which a row's own replace: they say what a sampler is, whatever the experiment's is.
        rows: in the order of the table.
        literal: the row that all are compared with.
        abreast: the other one.
        caveats: what to say of which `rows` where a `key` of the training has some `value`.
        speed: (row, over which, at least how many times as fast).
        quality: which rows are held against which, and by what margins.
    """

    common: dict[str, Any]
    rows: tuple[BenchRow, ...]
    literal: str
    abreast: str
    caveats: tuple[dict[str, Any], ...]
    speed: tuple[tuple[str, str, float], ...]
    quality: dict[str, Any]


@dataclass(frozen=True)
class Timing:
    """How fast a row is.

    Attributes:
        evaluations_per_slice: network evaluations for a finished slice of whole cases.
        network_calls: one after the other, for all timed volumes at the cases' length.
        slices_per_second: of each turn.
        flop_share: of the device's matrix products' speed.
        peak_memory_bytes: on a CUDA device, not compiled; None on a CPU, where it is that of the whole process.
        timed: what was run, in words.
        sample: the keys of sampling, those filled in that are left to the device.
    """

    evaluations_per_slice: float
    network_calls: int
    slices_per_second: tuple[float, ...]
    flop_share: float
    peak_memory_bytes: int | None
    timed: str
    sample: dict[str, Any]

    @property
    def median(self) -> float:
        """Slices a second."""
        return statistics.median(self.slices_per_second)


def read_plan(path: Path = FILE) -> Plan:
    """Read which rows there are and what is asked of them."""
    data = load.read_yaml(path)
    return Plan(
        data["common"],
        tuple(BenchRow(**row) for row in data["rows"]),
        data["literal"],
        data["abreast"],
        tuple(data["caveats"]),
        tuple((row, over, float(least)) for row, over, least in data["speed"]),
        data["quality"],
    )


def rows_of(request: Request, seed: int, plan: Plan) -> tuple[Loaded, dict[str, Loaded], dict[str, str]]:
    """Resolve the rows.

    Returns:
        The experiment whose weights are used; row -> its experiment; row -> why these weights cannot do it.

    Raises:
        UserError: the experiment's method has no such samplers.
    """
    path = load.find(request.target)
    base = load.load(path, request.profile, request.overrides, seed)
    if "sample" not in method_of(base.experiment).groups:
        raise UserError(f"bench {request.target}: {base.experiment.method} has none of the samplers of {FILE.name}")
    given = {pair.partition("=")[0]: pair for pair in request.overrides}
    rows, refused = {}, {}
    for row in plan.rows:
        asked = plan.common | row.keys
        own = {key: value for key, value in asked.items() if key not in given} | row.pinned
        keys = [f"{key}={load.as_yaml(value)}" for key, value in own.items()]
        try:
            loaded = load.load(path, request.profile, [*(given[k] for k in given if k not in own), *keys], seed)
        except UserError as error:
            if row.name in (plan.literal, plan.abreast):
                raise UserError(f"bench, {row.name}: {error}") from None
            refused[row.name] = str(error).removeprefix(f"experiment {base.experiment.name}: ")
            continue
        named = replace(loaded.experiment, name=f"bench/{base.experiment.name}/{row.name}")
        rows[row.name] = replace(loaded, experiment=named, overrides=base.overrides)
    return base, rows, refused


def make_volumes(
    request: Request, plan: Plan, base: Loaded, rows: dict[str, Loaded], speed_only: bool = False
) -> Resolved:
    """Train where that is left, and make and score the volumes of all rows (not for `speed_only`).

    Raises:
        UserError: a row cannot be made.
    """
    made = [rows[name] for name in dict.fromkeys(row.volumes for row in plan.rows) if name in rows]
    named = tuple(Row(one.experiment.name, one.experiment.name) for one in made)
    table = Table("bench", "", (), (), None, None, (Row("GT", source=GROUND_TRUTH), *named), FILE)
    tasks = tasks_of(made, ground_truth=True)
    if speed_only:
        tasks = [task for task in tasks if task.name not in ("generate", "evaluate")]
    resolved = Resolved(table, made, tasks, Folders.of(base))
    if code := pipeline.complete(resolved, replace(request, seeds=(base.experiment.seed,))):
        raise UserError(f"bench: some rows could not be made (exit code {code}); see above")
    return resolved


def time_rows(
    plan: Plan,
    rows: dict[str, Loaded],
    resolved: Resolved,
    volumes: int | None,
    slices: int | None,
    repeats: int,
    say: Callable[[str], None],
) -> dict[str, Timing]:
    """Time all rows in turns, forwards and backwards, after one run of each that does not count.

    Args:
        plan: what is timed of each row.
        rows: row -> experiment; those that can run.
        resolved: where the training is.
        volumes: cases, at most; None: all of the test split.
        slices: of each case, at most; None: all.
        repeats: turns.
        say: told what is being timed.
    """
    import torch

    from trace_lightning.data import cache

    if threads := next(iter(rows.values())).experiment.run.threads:
        torch.set_num_threads(threads)
    training = next(task.folder for task in resolved.tasks if task.name == "train")
    first = next(iter(rows.values()))
    some = first.experiment
    abreast_given = any(pair.startswith("sample.volumes_abreast=") for pair in first.overrides)
    whole = [lowest(case, slices) for case in cache.test_cases(some)[:volumes]]
    trained = resolve(method_of(some).load)(some, training)
    benches = {}
    for row in plan.rows:
        if row.name not in rows:
            continue
        experiment = rows[row.name].experiment
        if row.timed_volumes != 1 and not abreast_given:
            experiment = replace(experiment, sample=replace(experiment.sample, volumes_abreast=len(whole)))
        timed = [lowest(case, row.timed_slices) for case in whole[: row.timed_volumes]]
        say(f"memory of {row.name}")
        benches[row.name] = _Bench(experiment, trained, timed, whole[: row.timed_volumes])
    for name, bench in benches.items():
        say(f"warming up {name}")
        bench.run()
    seconds: dict[str, list[float]] = {name: [] for name in benches}
    for turn in range(repeats):
        order = list(benches) if turn % 2 == 0 else list(benches)[::-1]
        for name in order:
            say(f"turn {turn + 1} of {repeats}: {name}")
            seconds[name].append(benches[name].run())
    return {name: bench.timing(seconds[name]) for name, bench in benches.items()}


def lowest(case: Case, slices: int | None) -> Case:
    """Return the lowest slices of a case."""
    if slices is None or slices >= case.grid.shape[0]:
        return case
    grid = replace(case.grid, shape=(slices, *case.grid.shape[1:]))
    return replace(case, grid=grid, labels=None if case.labels is None else case.labels[:slices])


class _Bench:
    """One row, ready to be timed: the trained network, shared by all rows, sampled in another way."""

    def __init__(self, experiment: Any, trained: Any, timed: Sequence[Case], whole: Sequence[Case]):
        inputs = method_of(experiment).inputs(experiment)
        self.generator = replace(trained, experiment=experiment)
        self.timed, self.whole = ([only(case, inputs) for case in cases] for cases in (timed, whole))
        self.seeds = [case_seed(experiment.seed, case.case_id) for case in timed]
        self.peak = self._peak_bytes() if trained.device.type == "cuda" else None

    def run(self) -> float:
        """Make the timed volumes; return seconds."""
        started = time.perf_counter()
        self._make(self.generator)
        return time.perf_counter() - started  # volumes arrive on the CPU: the device is done

    def _peak_bytes(self) -> int:
        """Return the peak of a run of few steps that is not compiled: torch does not count what CUDA graphs keep."""
        sample = self.generator.experiment.sample
        few = replace(sample, compile="off", num_inference_steps=min(sample.num_inference_steps, PEAK_STEPS))
        made = self._make(replace(self.generator, experiment=replace(self.generator.experiment, sample=few)))
        return max(generated.peak_memory_bytes for generated in made)

    def _make(self, generator: Any) -> list[Generated]:
        return list(generator.generate(self.timed, self.seeds, lambda done, total, note="": None))

    def timing(self, seconds: Sequence[float]) -> Timing:
        """Return what was measured, at the cases' full length."""
        timed, whole = ([case.grid.shape[0] for case in cases] for cases in (self.timed, self.whole))
        cost = self.generator.evaluations_per_slice
        evaluations = sum(cost(n) * n for n in timed)
        per_slice = sum(cost(n) * n for n in whole) / sum(whole)
        speeds = tuple(evaluations / (one * per_slice) for one in seconds)
        share = self.generator.flop_share(per_slice * float(np.median(speeds)))
        extent = f"{min(whole)}" if min(whole) == max(whole) else f"{min(whole)} to {max(whole)}"
        some = "" if timed == whole else f", the lowest {timed[0]} of each, scaled by evaluations"
        words = f"{len(timed)} volume(s) of {extent} slices{some}"
        calls, sample = self.generator.network_calls(whole), asdict(self.generator.settings)
        return Timing(per_slice, calls, speeds, share, self.peak, words, sample)


def bench(
    request: Request,
    volumes: int | None,
    slices: int | None,
    repeats: int,
    out: Path | None,
    speed_only: bool = False,
) -> Path:
    """Make, score and time all rows; print the table and write `bench.json`, `bench.md` and `bench.png`.

    Args:
        request: an experiment, profile and overrides; quality is pooled over its seeds, speed measured on the first.
        volumes: cases that are timed, at most.
        slices: of each timed case, at most.
        repeats: turns of timing.
        out: folder of the results; None: `runs/<profile>/bench/<experiment>`, of speeds alone `speed` in it.
        speed_only: time only; no volumes are made and scored.

    Returns:
        The folder.
    """
    from evaluation.render import console_of
    from experiments import bench_report

    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    console, plan = console_of(), read_plan()
    of_seeds = [rows_of(request, seed, plan) for seed in request.seeds]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # an hour later would be late to find that it cannot be made
    done = [(make_volumes(request, plan, base, rows, speed_only), rows) for base, rows, _ in of_seeds]
    (resolved, rows), (base, _, refused) = done[0], of_seeds[0]
    with console.status("timing") as status:
        timings = time_rows(
            plan, rows, resolved, volumes, slices, repeats, lambda text: status.update(f"timing: {text}")
        )
    folder = out or resolved.folders.profile / "bench" / base.experiment.name / ("speed" if speed_only else "")
    scored = (
        []
        if speed_only
        else [{name: made.folders.run(one.experiment.name) for name, one in rows.items()} for made, rows in done]
    )
    real = [] if speed_only else [made.folders.ground_truth for made, _ in done]
    result = bench_report.collect(plan, timings, refused, scored, real, base, request.seeds)
    result["timed"] = {"volumes": volumes, "slices": slices, "repeats": repeats}
    bench_report.write(result, folder)
    if not speed_only:
        bench_report.write_pictures(plan, scored[0], real[0], folder / "montage.png")
    bench_report.show(result, console)
    console.print(f"written: {folder}/bench.json and bench.md{'' if speed_only else ', bench.png, montage.png'}")
    return folder
