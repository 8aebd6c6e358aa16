"""python -m evaluation score|table|compare: numbers from files on disk."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trace_lightning.errors import UserError, run_command

EXAMPLES = """\
examples:
  python -m evaluation score my_volumes real_volumes --out scores
  python -m evaluation score my_volumes real_volumes --masks masks --spacing-mm 1.5 --out scores
  python -m evaluation table experiments/table1.yaml --profile phantom --seeds 0 1 2
  python -m evaluation compare runs/phantom/ours/seed0 runs/phantom/pfm_dag/seed0
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(
        prog="python -m evaluation",
        description="Score CT volumes on disk, whoever made them, and print tables of scores.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_score(commands)
    _add_table(commands)
    _add_compare(commands)
    return top


def _add_score(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "score",
        help="score a folder of volumes against the real ones",
        description="Segment every generated and its real volume by the same segmenter, compare them, measure what "
        "happens from slice to slice, and write per_case/, per_case.csv and summary.json. Stopped, it continues: "
        "cases that are done, with the same files and protocol, are not scored again.",
    )
    command.add_argument(
        "generated", type=Path, help="folder of <case>.nii.gz in HU; <case>.json beside them for costs"
    )
    command.add_argument("reference", type=Path, help="folder of the real volumes, under the same names")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the scores go")
    command.add_argument(
        "--masks",
        type=Path,
        metavar="DIR",
        help="folder of <case>.nii.gz with VISTA3D ids on the generated volume's grid: adds Dice against the exact "
        "mask, its chance (other real patients), ceiling (the real volume) and the skill between them",
    )
    command.add_argument("--mask-source", metavar="NAME", help="where the masks come from, for the record")
    command.add_argument(
        "--spacing-mm",
        type=float,
        metavar="X",
        help="compare on isotropic voxels of X mm over the real volume's field of view (default: its own grid)",
    )
    command.add_argument(
        "--segmenter", default="threshold", help="threshold: lungs and bone from HU, no weights (default)"
    )
    command.add_argument("--groups", nargs="+", default=["lung", "bone"], metavar="G", help="default: lung bone")
    command.add_argument(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="samples of the 95 %% intervals (default 1000; 0: none)",
    )


def _add_table(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "table",
        help="print a table of runs from their score files",
        description="Read the scores that the rows of a table have on disk, print the table and write table.md, "
        "table.csv, table.tex and montage.png into RUNS/PROFILE/NAME/. Nothing is computed again.",
    )
    command.add_argument("table", type=Path, help="YAML file, as experiments/table1.yaml")
    command.add_argument("--profile", default="phantom", help="which runs (default: phantom)")
    seeds = command.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, default=0, metavar="K", help="default: 0")
    seeds.add_argument("--seeds", type=int, nargs="+", metavar="K", help="several: mean and spread over seeds")
    command.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    command.add_argument("--width", type=int, metavar="W", help="characters of a line (default: the terminal's)")
    command.add_argument("--no-montage", action="store_true", help="draw no slices")


def _add_compare(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "compare",
        help="compare two methods on the same cases",
        description="Paired comparison of A with B, volume by volume, with a bootstrap over cases. Give several pairs "
        "(seeds) as A B A2 B2 ...; volumes of one case are then one unit of the bootstrap.",
    )
    command.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run folders that hold scores/: A B [A2 B2 ...]"
    )
    command.add_argument("--metrics", nargs="+", metavar="NAME", help="default: fidelity, skill and slice-to-slice")
    command.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="samples (default 1000)")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the comparison as JSON too")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command."""
    given = parser().parse_args(arguments)
    {"score": _score, "table": _table, "compare": _compare}[given.command](given)


def _score(given: argparse.Namespace) -> None:
    from rich.progress import Progress

    from evaluation.score import SUMMARY, score
    from evaluation.settings import Settings

    settings = Settings(
        segmenter=given.segmenter,
        groups=tuple(given.groups),
        spacing_mm=given.spacing_mm,
        bootstrap_samples=given.bootstrap,
        mask_source=given.mask_source,
    )
    with Progress(disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("scoring", total=None)

        def progress(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, description=f"scoring {note}")

        summary = score(given.generated, given.reference, given.out, given.masks, settings=settings, progress=progress)
    from evaluation.render import show_summary

    show_summary(summary)
    print(f"written: {given.out / SUMMARY}, {given.out / 'per_case.csv'}")


def _table(given: argparse.Namespace) -> None:
    from evaluation.table import make_table

    seeds = given.seeds or [given.seed]
    make_table(given.table, given.profile, seeds, given.runs_dir, given.width, montage=not given.no_montage)


def _compare(given: argparse.Namespace) -> None:
    from evaluation import compare
    from trace_lightning.artifacts import write_json

    if len(given.runs) % 2:
        raise UserError(f"compare: runs come in pairs, A B [A2 B2 ...]; {len(given.runs)} were given")
    runs = list(zip(given.runs[0::2], given.runs[1::2], strict=True))
    found = compare.compare(runs, given.metrics or compare.DEFAULT_METRICS, given.bootstrap)
    compare.show(found, runs)
    if given.json:
        write_json(given.json, compare.to_json(found, runs))


if __name__ == "__main__":
    run_command(main)
