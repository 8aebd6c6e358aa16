"""python -m evaluation score|fidelity|table|compare|lengths|memorisation|metrics|weights: numbers from files."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.options import parser
from trace_lightning.errors import UserError, run_command

if TYPE_CHECKING:
    from evaluation.inputs import Frames


def main(arguments: Sequence[str] | None = None) -> int | None:
    """Run a command; return its exit code."""
    given = parser().parse_args(arguments)
    if getattr(given, "jobs", 1) < 1:
        raise UserError(f"--jobs {given.jobs}: at least one process")
    if (getattr(given, "bootstrap", None) or 0) < 0:
        raise UserError(f"--bootstrap {given.bootstrap}: 0 (no intervals) or more samples")
    commands = {
        "score": _score,
        "fidelity": _fidelity,
        "table": _table,
        "compare": _compare,
        "lengths": _lengths,
        "memorisation": _memorisation,
        "metrics": _metrics,
        "weights": _weights,
    }
    return commands[given.command](given)


def _score(given: argparse.Namespace) -> int:
    from evaluation.inputs import read_prompts
    from evaluation.measure import Resources
    from evaluation.score import score
    from evaluation.settings import read_protocol
    from evaluation.weights import folder

    settings = read_protocol(
        given.protocol,
        segmenter=given.segmenter,
        segmenter_weights=given.segmenter_weights,
        groups=given.groups,
        spacing_mm=given.spacing_mm,
        bootstrap_samples=given.bootstrap,
        mask_source=given.mask_source,
    )
    prompts = given.prompts and read_prompts(given.prompts)
    with _progress("scoring") as progress:
        summary = score(
            given.generated,
            given.reference,
            given.out,
            given.masks,
            settings=settings,
            metrics=given.metrics,
            jobs=given.jobs,
            resources=Resources(folder(given.weights), given.device, given.ct_clip),
            frames=_frames(given),
            prompts=prompts,
            cache_dir=given.cache,
            progress=progress,
        )
    return _show(summary, given.out)


def _frames(given: argparse.Namespace) -> Frames | None:
    from evaluation.inputs import Frames

    if not (given.frame_spacing_mm and given.frame_window_hu):
        return None
    return Frames(tuple(given.frame_spacing_mm), tuple(given.frame_window_hu))


def _fidelity(given: argparse.Namespace) -> int:
    from evaluation.label_maps import Rules, compare_label_maps

    rules = Rules(given.ids and tuple(given.ids), given.strict, given.resample, given.voxels)
    samples = 1000 if given.bootstrap is None else given.bootstrap
    with _progress("comparing") as progress:
        summary = compare_label_maps(
            given.generated,
            given.reference,
            given.out,
            rules,
            jobs=given.jobs,
            bootstrap_samples=samples,
            progress=progress,
        )
    return _show(summary, given.out)


def _show(summary: dict, out: Path) -> int:
    """Print what was found; return 1 where something was not scored."""
    from evaluation.render import show_summary

    show_summary(summary)
    print(f"written: {', '.join(str(out / name) for name in ('summary.json', 'report.md', 'per_case.csv'))}")
    return int(any(summary[kind] for kind in ("failed", "unmatched", "missing")))


@contextlib.contextmanager
def _progress(verb: str) -> Iterator[Callable[[int, int, str], None]]:
    from rich.progress import Progress

    with Progress(disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(verb, total=None)

        def progress(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, description=f"{verb} {note}")

        yield progress


def _table(given: argparse.Namespace) -> None:
    from evaluation.table import of_runs, publish

    seeds = given.seeds or [given.seed]
    table = of_runs(given.table, given.profile, seeds, given.runs_dir)
    if not any(row.scores for row in table.rows if not row.is_real):
        shown = ", ".join(map(str, seeds))
        raise UserError(f"{given.runs_dir / given.profile}: no row of {given.table} is scored with seed {shown}")
    publish(table, given.runs_dir, given.width, montage=not given.no_montage)
    status = f"python -m experiments status {given.table} --profile {given.profile} --seeds {' '.join(map(str, seeds))}"
    print(f"scores are taken as they are on disk; whether code or keys have changed since is told by\n  {status}")


def _compare(given: argparse.Namespace) -> None:
    from evaluation import compare
    from trace_lightning.artifacts import write_json

    if len(given.runs) % 2:
        raise UserError(f"compare: runs come in pairs, A B [A2 B2 ...]; {len(given.runs)} were given")
    runs = list(zip(given.runs[0::2], given.runs[1::2], strict=True))
    found = compare.compare(runs, given.metrics or compare.DEFAULT_METRICS)
    compare.show(found, runs)
    if given.json:
        write_json(given.json, compare.to_json(found, runs))


def _lengths(given: argparse.Namespace) -> int:
    from evaluation.curves import show, write
    from evaluation.features.store import FeatureStore
    from evaluation.lengths import choose, rows_of
    from evaluation.scored import read_all

    methods = read_all(given.scores, given.labels)
    chosen = choose(methods, given.lengths)
    with _progress("measuring") as progress:
        rows, failed = rows_of(
            methods,
            chosen,
            FeatureStore(given.out / "cache"),
            cache_dir=given.cache,
            frames=_frames(given),
            samples=200 if given.bootstrap is None else given.bootstrap,
            jobs=given.jobs,
            progress=progress,
        )
    found = write(given.out, methods, chosen, rows, failed)
    show(found, rows)
    print(f"written: {', '.join(str(given.out / f'lengths.{suffix}') for suffix in ('csv', 'json', 'png'))}")
    return int(bool(failed))


def _memorisation(given: argparse.Namespace) -> int:
    from evaluation.nearest import compare_with_training, show, space_of
    from evaluation.settings import read_protocol
    from evaluation.weights import folder

    settings = read_protocol(given.protocol)
    space = space_of(
        given.extractor,
        settings,
        folder(given.weights),
        given.cache or given.out / "features",
        device=given.device,
        frames=_frames(given),
    )
    with _progress("looking at") as progress:
        summary = compare_with_training(
            given.generated,
            given.training,
            given.heldout,
            given.out,
            space,
            samples=1000 if given.bootstrap is None else given.bootstrap,
            jobs=given.jobs,
            progress=progress,
        )
    show(summary)
    print(f"written: {', '.join(str(given.out / name) for name in ('per_volume.csv', 'summary.json', 'nearest.png'))}")
    return int(bool(summary["failed"]))


def _metrics(given: argparse.Namespace) -> None:
    from evaluation.listing import show_metrics

    show_metrics(given.weights, given.width)


def _weights(given: argparse.Namespace) -> int:
    from evaluation.listing import check_weights, fetch_weights

    if given.action == "check":
        return check_weights(given.names, given.weights)
    with _progress("fetching") as progress:
        return fetch_weights(given.names, given.weights, progress)


if __name__ == "__main__":
    run_command(main)
