"""Prints a table in the terminal and as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.metrics import Metric
from evaluation.rows import Block, Cell, Row, Table
from trace_lightning.artifacts import write_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

PIPED_WIDTH = 120
LAYOUTS = ((24, 1), (24, 0), (12, 0))  # width of labels and space beside a column, from roomy to tight
MARK = "*"  # differs from the row that the table names
INPUT_CODES = {"mask": "M", "text": "T", "length": "L", "head": "H", "slices": "S"}
INPUT_WORDS = {"mask": "mask", "text": "text", "length": "length", "head": "first real slices", "slices": "real slices"}
CSV_COLUMNS = (
    "block",
    "row",
    "inputs",
    "column",
    "value",
    "low",
    "high",
    "spread",
    "n",
    "unit",
    "best",
    "differs",
    "reason",
)
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


class Footnotes:
    """Numbers reasons in the order in which they are met; the same reason has one number."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def mark(self, reason: str) -> int:
        """Return the number of a reason, from 1."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason) + 1


def show(table: Table, width: int | None = None) -> None:
    """Print a table; `width` None takes the terminal's, or 120 characters into a pipe.

    Intervals are shown where they fit, below their numbers; columns that do not fit go on below.
    """
    console, notes = console_of(width), Footnotes()
    console.print(f"\n[bold]{_plain(table.title)}[/bold]")
    hidden = False
    for block in table.blocks:
        console.print(f"\n[bold]{_plain(block.title)}[/bold]\n")
        absent = block.empty()
        kept = tuple(column for column in block.columns if column not in absent)
        grids, with_intervals = _fitting(replace(block, columns=kept), notes, console) if kept else ([], True)
        hidden |= not with_intervals
        for grid in grids:
            console.print(grid)
            console.print()
        for reason in dict.fromkeys(absent.values()):
            names = ", ".join(column for column in absent if absent[column] == reason)
            console.print(f"left out, empty: {names}: {_plain(reason)}\n", style="dim")
        if block.source:
            console.print(f"source: {_plain(block.source)}\n", style="dim")
    for line in _below(table, notes, lambda number: str(number).translate(SUPERSCRIPTS)):
        console.print(_plain(line), style="dim")
    if hidden:
        console.print("intervals did not fit: see table.md or table.csv, or widen the terminal", style="dim")
    console.print()


def console_of(width: int | None = None) -> Console:
    """Return a console of the terminal's width, or of 120 characters into a pipe."""
    from rich.console import Console

    if width is None and not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        width = PIPED_WIDTH
    return Console(width=width, highlight=False)


def _fitting(block: Block, notes: Footnotes, console: Console) -> tuple[list[RichTable], bool]:
    """Return the block as grids of the console's width, and whether its intervals are in them."""
    has_intervals = any(_extent(row.cells[c], block.metric(c)) for row in block.rows for c in block.columns)
    for with_intervals in (True, False) if has_intervals else (False,):
        for label_width, gap in LAYOUTS:
            grid = _terminal(block, block.columns, notes, with_intervals, label_width, gap)
            if _width(grid, console) <= console.width:
                return [grid], with_intervals or not has_intervals
    grids, columns = [], block.columns
    while columns:
        candidates = (columns[:count] for count in range(len(columns), 0, -1))
        for some in candidates:
            grid = _terminal(block, some, notes, False, *LAYOUTS[-1])
            if len(some) == 1 or _width(grid, console) <= console.width:
                break
        grids.append(grid)
        columns = columns[len(some) :]
    return grids, not has_intervals


def _width(grid: RichTable, console: Console) -> int:
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(max_width=10_000), grid).maximum


def write(table: Table, folder: Path) -> None:
    """Write table.md, table.csv and table.tex, each whole or not at all."""
    write_text(folder / "table.md", markdown(table))
    write_text(folder / "table.csv", comma_separated(table))
    write_text(folder / "table.tex", latex(table))


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def _terminal(
    block: Block, columns: Sequence[str], notes: Footnotes, with_intervals: bool, label_width: int, gap: int
) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable

    ours = block.source is None
    grid = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, gap, 0, 0), pad_edge=False)
    grid.add_column("", no_wrap=True)
    if ours:
        grid.add_column("in", no_wrap=True)
        grid.add_column("n", justify="right", no_wrap=True)
    for column in columns:
        grid.add_column(_plain(_header(block.metric(column))), justify="right", no_wrap=True)
    for row in block.rows:
        label = _plain(textwrap.fill(row.label, label_width, break_long_words=False)) + _superscript(row.reason, notes)
        given = [_codes(row), str(row.n) if row.n else ""] if ours else []
        cells = [_terminal_cell(row.cells[c], block.metric(c), notes, with_intervals, row) for c in columns]
        grid.add_row(label, *given, *cells)
    return grid


def _header(spec: Metric) -> str:
    """Return the title in two lines and the arrow below."""
    first, _, second = spec.title.partition("\n")
    return f"{first}\n{second}\n{spec.arrow}"


def _terminal_cell(cell: Cell, spec: Metric, notes: Footnotes, with_intervals: bool, row: Row) -> str:
    if cell.text is not None:
        return _plain(cell.text)
    if cell.value is None:
        return "-" if row.reason else f"-{_superscript(cell.reason, notes)}"
    value = f"[bold]{_number(cell.value, spec)}[/bold]" if cell.best else _number(cell.value, spec)
    value += MARK * cell.differs
    if with_intervals and (extent := _extent(cell, spec)):
        return f"{value}\n[dim]{extent}[/dim]"
    return value


def _superscript(reason: str | None, notes: Footnotes) -> str:
    return "" if reason is None else str(notes.mark(reason)).translate(SUPERSCRIPTS)


def _number(value: float, spec: Metric, fewer: int = 0) -> str:
    return f"{value:.{max(0, spec.digits - fewer)}f}"


def _extent(cell: Cell, spec: Metric) -> str:
    if cell.spread is not None:
        return f"±{_number(cell.spread, spec)}"
    if cell.low is not None and cell.high is not None:
        fewer = int(spec.digits > 1 and max(abs(cell.low), abs(cell.high)) >= 10)
        low, high = _number(cell.low, spec, fewer), _number(cell.high, spec, fewer)
        return f"{low}–{high}" if low != high else ""
    return ""


def _codes(row: Row) -> str:
    if row.inputs is None:
        return "" if row.is_real or row.reason else "?"
    return "".join(INPUT_CODES.get(name, f"[{name}]") for name in row.inputs) or "none"


def _below(table: Table, notes: Footnotes, mark) -> list[str]:
    lines = [f"{mark(number)} {reason}" for number, reason in enumerate(notes.reasons, start=1)]
    read = {"mask", "text", "length"} | {name for row in table.rows for name in row.inputs or ()}
    legend = ", ".join(f"{code} {INPUT_WORDS[name]}" for name, code in INPUT_CODES.items() if name in read)
    return [*lines, f"in: what the method is given of the test patient ({legend})", *table.notes]


def _one_line(spec: Metric) -> str:
    return (spec.title.replace("-\n", "").replace("\n", " ") + f" {spec.arrow}").strip()


def markdown(table: Table) -> str:
    """Return the table as Markdown, with intervals."""
    notes, lines = Footnotes(), [f"# {table.title}", ""]
    for block in table.blocks:
        ours = block.source is None
        heads = ["", *(["in", "n"] if ours else []), *(_one_line(block.metric(c)) for c in block.columns)]
        lines += [f"## {block.title}", "", _piped(heads), _piped(["---"] + ["---:"] * (len(heads) - 1))]
        for row in block.rows:
            label = row.label + (f" [{notes.mark(row.reason)}]" if row.reason else "")
            given = [_codes(row), str(row.n) if row.n else ""] if ours else []
            cells = [_markdown_cell(row.cells[c], block.metric(c), notes, row) for c in block.columns]
            lines.append(_piped([label, *given, *cells]))
        lines += ["", *([f"Source: {block.source}", ""] if block.source else [])]
    lines += [f"- {line}" for line in _below(table, notes, lambda number: f"[{number}]")]
    return "\n".join(lines) + "\n"


def _piped(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _markdown_cell(cell: Cell, spec: Metric, notes: Footnotes, row: Row) -> str:
    if cell.text is not None:
        return cell.text
    if cell.value is None:
        return "-" if row.reason else f"- [{notes.mark(cell.reason)}]"
    value = f"**{_number(cell.value, spec)}**" if cell.best else _number(cell.value, spec)
    value += "\\*" * cell.differs
    extent = _extent(cell, spec)
    return f"{value} ({extent})" if extent else value


def comma_separated(table: Table) -> str:
    """Return one line a number: block, row, inputs, column, value, interval, spread, n, unit, best, differs, reason."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for block in table.blocks:
        for row in block.rows:
            for column in block.columns:
                cell, spec = row.cells[column], block.metric(column)
                numbers = ["" if x is None else repr(x) for x in (cell.value, cell.low, cell.high, cell.spread)]
                if cell.text is not None:
                    numbers[0] = cell.text
                name = "as published" if block.source else "ours"
                given = "" if row.inputs is None else "+".join(row.inputs) or "none"
                tail = [cell.n or "", spec.printed_unit, int(cell.best), int(cell.differs), cell.reason or ""]
                writer.writerow([name, row.label, given, column, *numbers, *tail])
    return out.getvalue()


def latex(table: Table) -> str:
    """Return the blocks as LaTeX tables (needs the booktabs package)."""
    notes, lines = Footnotes(), ["% needs \\usepackage{booktabs}"]
    for block in table.blocks:
        ours = block.source is None
        heads = ["", *(["in", "$n$"] if ours else []), *(_latex_head(block.metric(c)) for c in block.columns)]
        lines += [
            "\\begin{table}",
            "\\centering",
            "\\small",
            f"\\caption{{{_escaped(f'{table.title}. {block.title}')}}}",
        ]
        lines += [
            f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            "\\toprule",
            " & ".join(heads) + r" \\",
            "\\midrule",
        ]
        for row in block.rows:
            label = _escaped(row.label) + (f"$^{{{notes.mark(row.reason)}}}$" if row.reason else "")
            given = [_codes(row), str(row.n) if row.n else ""] if ours else []
            cells = [_latex_cell(row.cells[c], block.metric(c), notes, row) for c in block.columns]
            lines.append(" & ".join([label, *given, *cells]) + r" \\")
        lines += ["\\bottomrule", "\\end{tabular}"]
        if block.source:
            lines.append(f"\n\\footnotesize Source: {_escaped(block.source)}")
        lines.append("\\end{table}\n")
    below = _below(table, notes, lambda number: f"$^{{{number}}}$")
    lines += ["{\\footnotesize", *(f"\\noindent {_escaped(line)}\\par" for line in below), "}"]
    return "\n".join(lines) + "\n"


def _latex_head(spec: Metric) -> str:
    arrow = {True: " $\\uparrow$", False: " $\\downarrow$", None: ""}[spec.higher_is_better]
    return _escaped(spec.title.replace("-\n", "").replace("\n", " ")) + arrow


def _latex_cell(cell: Cell, spec: Metric, notes: Footnotes, row: Row) -> str:
    if cell.text is not None:
        return _escaped(cell.text)
    if cell.value is None:
        return "--" if row.reason else f"--$^{{{notes.mark(cell.reason)}}}$"
    value = f"\\textbf{{{_number(cell.value, spec)}}}" if cell.best else _number(cell.value, spec)
    value += "$^{*}$" * cell.differs
    extent = _extent(cell, spec).replace("–", "--").replace("±", "$\\pm$")
    return f"{value} {{\\scriptsize {extent}}}" if extent else value


def _escaped(text: str) -> str:
    for old, new in {
        "\\": "\\textbackslash ",
        "%": "\\%",
        "&": "\\&",
        "#": "\\#",
        "_": "\\_",
        "×": "$\\times$",
        "[": "{[}",  # after the end of a row it would be an argument
    }.items():
        text = text.replace(old, new)
    return text


def show_summary(summary: dict) -> None:
    """Print what a scoring found."""
    from rich import box
    from rich.table import Table as RichTable

    console = console_of()
    grid = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for head in ("", "value", "95 %", "real", "floor", "unit", "n", "d"):
        grid.add_column(head, justify="left" if head in ("", "unit") else "right", no_wrap=True)
    absent: dict[str, list[str]] = {}
    for name, entry in summary["metrics"].items():
        if entry["value"] is None:
            absent.setdefault(entry["reason"], []).append(name)
            continue
        extent = f"{entry['low']:.4g} … {entry['high']:.4g}" if entry["low"] != entry["high"] else ""
        real = "" if entry["real"] is None else f"{entry['real']:.4g}"
        floor = "" if entry.get("floor") is None else f"{entry['floor']:.4g}"
        sizes = str(entry["n"]), str(entry.get("d") or "")
        grid.add_row(name, f"{entry['value']:.4g}", extent, real, floor, entry["unit"], *sizes)
    console.print(grid)
    for reason, names in absent.items():
        console.print(f"- {', '.join(names)}: {reason}", style="dim", markup=False)
    for name, entry in summary["metrics"].items():
        if entry.get("warning"):
            console.print(f"! {name}: {entry['warning']}", style="dim", markup=False)
    for group, states in summary["groups"].items():
        console.print(f"{group}: " + ", ".join(f"{count} {state}" for state, count in states.items()))
    for kind, said in (("missing", "real volumes have no generated one"), ("unmatched", "generated have no real one")):
        if summary[kind]:
            console.print(f"{len(summary[kind])} {said}: {', '.join(summary[kind])}", markup=False)
    for case_id, reason in summary["failed"].items():
        console.print(f"not scored: {case_id}: {reason}", markup=False, soft_wrap=True)
    console.print(f"{summary['n']} volumes scored")
