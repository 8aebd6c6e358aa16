"""Examine every volume of a CT-RATE tree before training on it. The table that is written is also what is done so far.

A volume is examined once; it is again when its file changes. Volumes are read just as preparing reads them.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, astuple, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from trace_lightning.anatomy.state import REFUSALS
from trace_lightning.artifacts import case_id_of, digest, write_text
from trace_lightning.data.ct_rate import Index, Scan, Wanted, read_index, volume_path
from trace_lightning.data.examine import examine
from trace_lightning.errors import UserError
from trace_lightning.protocol import Progress

RULES = 1  # raise it when the same file may be decided otherwise
FOLDERS = ("train_fixed", "valid_fixed", "train", "valid")


@dataclass(frozen=True)
class Settings:
    """What decisions depend on besides the files."""

    root: str
    version: Wanted = "auto"
    min_slices: int = 8
    repair: bool = False

    @property
    def identity(self) -> str:
        """Return hex digits that name the settings and the rules."""
        return digest({"rules": RULES, **asdict(self)})


@dataclass(frozen=True)
class Finding:
    """A line of the table: `state` and `reason` as in `state.Decision`, and which file they are about."""

    volume_name: str
    state: str
    reason: str
    text: str
    file: str
    size: int
    mtime_ns: int
    settings: str


HEADER = [field.name for field in fields(Finding)]


class Task(NamedTuple):
    """A file that lies in the tree, and either its scan or why it is not used whatever it holds."""

    path: Path
    scan: Scan | None
    reason: str = ""
    text: str = ""


def examine_tree(settings: Settings, table: Path, jobs: int, progress: Progress) -> tuple[list[Finding], int]:
    """Examine all volumes on disk and write the table; what it holds already of unchanged files is kept.

    Args:
        settings: the tree, and what decisions depend on.
        table: CSV file, continued if it is there.
        jobs: processes.
        progress: counts volumes.

    Returns:
        The findings in the order of the tables, and how many listed volumes are not on disk.

    Raises:
        UserError: no tree, or a table that was written for another tree or with other settings.
    """
    index = read_index(Path(settings.root), settings.version)
    tasks, absent = _tasks(index)
    known = {finding.volume_name: finding for finding in _read(table, settings)}
    found: dict[Path, Finding] = {}
    for task in tasks:
        finding = known.get(task.path.name)
        if finding is not None and (finding.file, finding.size, finding.mtime_ns) == _identity(task.path):
            found[task.path] = finding
    todo = [task for task in tasks if task.path not in found]
    write_text(table, _csv([HEADER, *map(astuple, found.values())]))
    with table.open("a", newline="", encoding="utf-8") as file:
        for task, finding in _examine_all(todo, settings, jobs):
            file.write(_csv([astuple(finding)]))
            file.flush()
            found[task.path] = finding
            progress(len(found), len(tasks), finding.volume_name)
    findings = [found[task.path] for task in tasks]
    write_text(table, _csv([HEADER, *map(astuple, findings)]))
    return findings, absent


def summary(findings: list[Finding], absent: int) -> str:
    """Return a table of what was decided for how many volumes, and what would be right for those refused."""
    counts = Counter((finding.state, finding.reason) for finding in findings)
    example = {(finding.state, finding.reason): finding for finding in reversed(findings)}
    lines = [f"{'state':8} {'reason':19} {'volumes':>7}  for example"]
    for (state, reason), count in sorted(counts.items()):
        first = example[state, reason]
        lines.append(f"{state:8} {reason:19} {count:7}  {first.volume_name}: {first.text}")
        if state == "refused":
            lines.append(f"{'':37} right would be: {REFUSALS[reason]}")
    refused = sum(finding.state == "refused" for finding in findings)
    lines.append(f"{len(findings)} volumes, {refused} refused; {absent} more are listed but not on disk")
    return "\n".join(lines)


def _tasks(index: Index) -> tuple[list[Task], int]:
    """Return what lies on disk, listed volumes first, and how many listed ones do not."""
    tasks = [Task(scan.path, scan) for scan in index.scans if scan.path.is_file()]
    for exclusion in index.excluded:
        paths = (volume_path(index.root, exclusion.case_id, version) for version in ("v2", "v1"))
        path = next((path for path in paths if path.is_file()), None)
        if path is not None:
            tasks.append(Task(path, None, exclusion.code, exclusion.reason))
    absent = len(index.scans) + len(index.excluded) - len(tasks)
    listed = {scan.case_id for scan in index.scans} | {exclusion.case_id for exclusion in index.excluded}
    for folder in FOLDERS:
        for path in sorted((index.root / "dataset" / folder).glob("*/*/*.nii*")):
            if case_id_of(path) not in listed:
                listed.add(case_id_of(path))
                tasks.append(Task(path, None, "not_listed", "the metadata table does not list it"))
    return tasks, absent


def _examine_all(tasks: list[Task], settings: Settings, jobs: int) -> Iterator[tuple[Task, Finding]]:
    if jobs == 1 or len(tasks) < 2:
        yield from ((task, _examine(task, settings)) for task in tasks)
        return
    # spawn: nothing of this process, such as the threads of the progress bar, is copied half-way.
    pool = ProcessPoolExecutor(min(jobs, len(tasks)), get_context("spawn"), _one_thread)
    try:
        running = {pool.submit(_examine, task, settings): task for task in tasks}
        for future in as_completed(running):
            yield running[future], future.result()
    except BrokenProcessPool:
        raise UserError(
            "a process that examined volumes was killed, probably for want of memory; repeat the command with fewer "
            "--jobs, it continues where it was"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    import cv2

    cv2.setNumThreads(1)


def _examine(task: Task, settings: Settings) -> Finding:
    state, reason, text = "refused", task.reason, task.text
    if task.scan is not None:
        scan = task.scan
        try:
            decision = examine(scan.path, scan.version, scan.acquisition, settings.repair, settings.min_slices).decision
            state, reason, text = decision.state, decision.reason, decision.text
        except UserError as error:
            reason, text = "unreadable", str(error)
    return Finding(task.path.name, state, reason, text, *_identity(task.path), settings.identity)


def _identity(path: Path) -> tuple[str, int, int]:
    stat = path.stat()
    return str(path), stat.st_size, stat.st_mtime_ns


def _read(table: Path, settings: Settings) -> list[Finding]:
    """Read what was found before; a last line without its end was cut off when the command was killed."""
    if not table.is_file():
        return []
    text = table.read_text(encoding="utf-8")
    rows = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
    if rows and (rows[0] != HEADER or any(len(row) != len(HEADER) for row in rows)):
        raise UserError(f"{table}: not a table of this command; it would have the columns {', '.join(HEADER)}")
    findings = [Finding(*row[:5], int(row[5]), int(row[6]), row[7]) for row in rows[1:]]
    if any(finding.settings != settings.identity for finding in findings):
        raise UserError(
            f"{table}: written for another tree, by other rules or with other settings than {asdict(settings)}; "
            "name another file with --csv, or delete it"
        )
    return findings


def _csv(rows: list) -> str:
    """Return lines of CSV; texts are on one line, so that a line is a volume."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [" ".join(cell.split()) if isinstance(cell, str) else cell for cell in row] for row in rows
    )
    return text.getvalue()
