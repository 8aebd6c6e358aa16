"""Prints a table of runs and writes it, with a montage of their volumes beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evaluation import render
from evaluation.gather import gather
from evaluation.montage import write_montage
from evaluation.rows import Table
from trace_lightning.errors import UserError


def make_table(
    table_path: Path,
    profile: str,
    seeds: Sequence[int] = (0,),
    runs_dir: Path = Path("runs"),
    width: int | None = None,
    montage: bool = True,
) -> Path:
    """Gather a table, print it, and write it; see `of_runs` and `publish`."""
    return publish(of_runs(table_path, profile, seeds, runs_dir), runs_dir, width, montage)


def of_runs(table_path: Path, profile: str, seeds: Sequence[int] = (0,), runs_dir: Path = Path("runs")) -> Table:
    """Gather a table.

    Args:
        table_path: the YAML file.
        profile: which of the runs.
        seeds: one, or several for means and spread.
        runs_dir: where the runs are.

    Raises:
        UserError: nothing was run in this profile, or a seed is named twice.
    """
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds {', '.join(map(str, seeds))}: one is named twice")
    if not (Path(runs_dir) / profile).is_dir():
        raise UserError(f"{Path(runs_dir) / profile}: no such folder; run the table in this profile first")
    return gather(table_path, profile, seeds, runs_dir)


def publish(table: Table, runs_dir: Path = Path("runs"), width: int | None = None, montage: bool = True) -> Path:
    """Print a table, and write table.md, table.csv, table.tex and montage.png.

    Args:
        table: as gathered.
        runs_dir: where the runs are.
        width: of the terminal; None asks it.
        montage: draw slices of each row's volumes too.

    Returns:
        The folder written to, `<runs_dir>/<profile>/<name>`.
    """
    folder = Path(runs_dir) / table.profile / table.name
    render.show(table, width)
    render.write(table, folder)
    written = ["table.md", "table.csv", "table.tex"]
    if montage and any(row.volumes for row in table.rows):
        write_montage(table.rows, folder / "montage.png", f"{table.title} ({table.profile})")
        written.append("montage.png")
    print(f"written: {', '.join(str(folder / name) for name in written)}")
    return folder
