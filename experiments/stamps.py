"""Stamps: what a stage depended on and what it produced, in a JSON file that is written last, by rename.

`<stage>.begun.json` is written when a stage starts, `<stage>.json` when it has ended. A later run compares what the
stage would depend on now: the same means skip (or go on), anything else stops with the difference. Code counts as a
digest of its syntax tree without docstrings, so comments, formatting and documentation may change freely.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal

from trace_lightning.artifacts import digest, file_digest, read_json, write_json
from trace_lightning.errors import UserError

ROOT = Path(__file__).parents[1]
MAX_SHOWN = 12

State = Literal["done", "begun", "absent"]


def check(folder: Path, stage: str, depends: dict[str, Any], redo: str) -> State:
    """Tell whether a stage is done, begun or absent.

    Args:
        folder: where the stamps of the stage are.
        stage: its name.
        depends: what the stage depends on now: {section: {key: value}}. A value of None is not known yet and is not
            compared.
        redo: the stage to name in the advice.

    Raises:
        UserError: it was done or begun with something else; shows the difference.
    """
    done, begun = folder / f"{stage}.json", folder / f"{stage}.begun.json"
    stamp = done if done.is_file() else begun
    if not stamp.is_file():
        return "absent"
    try:
        then = read_json(stamp)["depends"]
    except (KeyError, TypeError):
        raise _no_stamp(stamp, stage) from None
    changes = differences(then, _plain(depends))
    if changes:
        shown = "".join(f"\n  {change}" for change in changes[:MAX_SHOWN])
        more = f"\n  and {len(changes) - MAX_SHOWN} more" if len(changes) > MAX_SHOWN else ""
        raise UserError(
            f"{folder}: {stage} was {'done' if stamp == done else 'begun'} with something else (then -> now):{shown}"
            f"{more}\nrestore it, or discard that result and what follows by `run` with --redo {redo}"
        )
    return "done" if stamp == done else "begun"


def begin(folder: Path, stage: str, depends: dict[str, Any]) -> None:
    """Note what a stage that starts now depends on."""
    write_json(folder / f"{stage}.begun.json", {"stage": stage, "depends": depends})


def finish(folder: Path, stage: str, depends: dict[str, Any], produced: dict[str, Any], seconds: float) -> None:
    """Write the stamp of a stage that has ended."""
    stamp = {"stage": stage, "depends": depends, "produced": produced, "seconds": round(seconds, 2)}
    write_json(folder / f"{stage}.json", stamp)
    (folder / f"{stage}.begun.json").unlink(missing_ok=True)


def fingerprint(folder: Path, stage: str) -> str | None:
    """Return a digest of what a finished stage depended on and produced, or None if it is not finished."""
    path = folder / f"{stage}.json"
    if not path.is_file():
        return None
    try:
        stamp = read_json(path)
        return digest([stamp["depends"], stamp["produced"]])
    except (KeyError, TypeError):
        raise _no_stamp(path, stage) from None


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return one line for each key whose value is known now and differs."""
    lines = []
    for section in new:
        then, now = old.get(section, {}), new[section]
        for key in sorted(then.keys() | now.keys()):
            if key in now and now[key] is None and section == "upstream":
                continue
            if then.get(key, "absent") != now.get(key, "absent"):
                lines.append(_line(section, key, then.get(key, "absent"), now.get(key, "absent")))
    return lines


def code_digests(patterns: Iterable[str], without: Iterable[str] = (), root: Path = ROOT) -> dict[str, str]:
    """Return file -> digest of its code for all files below `root` that match the patterns, except those `without`."""
    files = sorted({path for pattern in patterns for path in root.glob(pattern)} - {root / path for path in without})
    return {str(path.relative_to(root)): code_digest(path) for path in files}


@cache
def code_digest(path: Path) -> str:
    """Return 16 hex digits of a Python file's syntax tree without docstrings, or of another file's bytes."""
    if path.suffix != ".py":
        return file_digest(path)
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _documented(node):
            node.body = node.body[1:]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]


def _no_stamp(path: Path, stage: str) -> UserError:
    return UserError(f"{path}: not a stamp of ours; delete it to do {stage} again")


def _documented(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return ast.get_docstring(node, clean=False) is not None


def _line(section: str, key: str, then: Any, now: Any) -> str:
    if section == "code":
        change = "is new" if then == "absent" else "is gone" if now == "absent" else "changed"
        return f"code: {key} {change}"
    if section == "upstream":
        return f"the result of {key} changed"
    return f"{key}: {_short(then)} -> {_short(now)}"


def _short(value: Any) -> str:
    text = value if value == "absent" else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plain(data: Any) -> Any:
    """Return data as it comes back from JSON."""
    return json.loads(json.dumps(data))
