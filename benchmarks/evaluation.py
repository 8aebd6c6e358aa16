"""python -m benchmarks.evaluation: our measures beside other implementations, value and seconds, in one table.

Each module `benchmarks/parity_*.py` gives rows: `rows(others)`, an iterator of `Row`, where `others` is the Python of
an environment that holds `benchmarks/requirements.txt`, or None. What cannot be run gives a row with the reason.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.row import Row
from evaluation.render import console_of
from trace_lightning.errors import UserError, run_command


def providers() -> list[str]:
    """Return the modules that give rows, by name."""
    return sorted(path.stem.removeprefix("parity_") for path in Path(__file__).parent.glob("parity_*.py"))


def collect(names: Sequence[str], others: Path | None) -> Iterator[Row]:
    """Yield the rows of some providers."""
    for name in names:
        yield from importlib.import_module(f"benchmarks.parity_{name}").rows(others)


def show(rows: Sequence[Row], width: int | None = None) -> None:
    """Print the table."""
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for head in ("quantity", "other implementation"):
        grid.add_column(head)
    for head in ("theirs", "ours", "difference", "their s", "our s", "times", "equal"):
        grid.add_column(head, justify="right", no_wrap=True)
    grid.add_column("note")
    for row in rows:
        both = row.theirs is not None and row.ours is not None
        faster = row.their_seconds / row.our_seconds if row.their_seconds and row.our_seconds else None
        grid.add_row(
            row.quantity,
            row.tool,
            _text(row.theirs, "{:.6f}"),
            _text(row.ours, "{:.6f}"),
            _text(abs(row.theirs - row.ours) if both else None, "{:.1e}"),
            _text(row.their_seconds, "{:.3f}"),
            _text(row.our_seconds, "{:.3f}"),
            _text(faster, "{:.1f}"),
            {True: "yes", False: "NO", None: ""}[row.agrees],
            row.note,
        )
    console_of(width).print(grid)


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 where values that should be equal are not."""
    command = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__.splitlines()[0])
    command.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(providers())} (default: all)")
    command.add_argument("--others", type=Path, metavar="PYTHON", help="python with benchmarks/requirements.txt")
    command.add_argument("--width", type=int, metavar="W", help="characters of a line")
    given = command.parse_args(arguments)
    if unknown := [name for name in given.names if name not in providers()]:
        raise UserError(f"{unknown[0]}: no such benchmark; there are {', '.join(providers())}")
    others = given.others if given.others and given.others.exists() else None
    rows = []
    for row in collect(given.names or providers(), others):
        rows.append(row)
        print(f"{len(rows)} {row.quantity}: {row.tool}", file=sys.stderr, flush=True)
    show(rows, given.width)
    print("seconds: processor time, threads added up")
    return int(any(row.agrees is False for row in rows))


if __name__ == "__main__":
    run_command(main)
