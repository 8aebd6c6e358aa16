"""Reads the YAML files of tables, and of the numbers that papers have published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evaluation.metrics import find_metric
from evaluation.rows import Block, Cell, Row
from trace_lightning.errors import UserError

GROUND_TRUTH, PUBLISHED = "ground_truth", "published"
KEYS = {
    "name": str,
    "title": str,
    "columns": list,
    "companions": list,
    "published": str,
    "against": str,
    "rows": list,
}
NEEDED = ("name", "columns", "rows")


def read_table(path: Path) -> dict[str, Any]:
    """Read the file of a table.

    Raises:
        UserError: absent, or something in it is not what a table takes.
    """
    data = read_yaml(path)
    if unknown := [key for key in data if key not in KEYS]:
        raise UserError(f"{path}: unknown key {unknown[0]!r}; a table has {', '.join(KEYS)}")
    for key, kind in KEYS.items():
        if key in NEEDED and not data.get(key):
            raise UserError(f"{path}: needs the key {key!r}")
        if data.get(key) is not None and not isinstance(data[key], kind):
            raise UserError(f"{path}: {key}={data[key]!r} is no {'list' if kind is list else 'text'}")
    if Path(data["name"]).name != data["name"]:
        raise UserError(f"{path}: name={data['name']!r} is a folder's name, without any /")
    for column in [*data["columns"], *(data.get("companions") or ())]:
        if not isinstance(column, str) or find_metric(column) is None:
            raise UserError(f"{path}: column {column!r} is no metric; see `metrics` of a summary.json for their names")
    for entry in data["rows"]:
        source = entry.get("source") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or "label" not in entry or (source is None) == ("experiment" not in entry):
            raise UserError(f"{path}: row {entry} needs a label, and either an experiment or a source")
        if odd := [key for key in ("label", "experiment") if not isinstance(entry.get(key, ""), str)]:
            raise UserError(f"{path}: row {entry}: {odd[0]} is no text")
        if source not in (None, GROUND_TRUTH, PUBLISHED):
            raise UserError(f"{path}: row {entry['label']!r}: source is {GROUND_TRUTH} or {PUBLISHED}, got {source!r}")
    return data


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds keys and values.

    Raises:
        UserError: absent, or no such YAML.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        data = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds no keys")
    return data


def published_block(reference: str, table_path: Path) -> Block:
    """Read published numbers.

    Args:
        reference: `file#key`, the file relative to the folder above the table's (the repository).
        table_path: the table's file.

    Raises:
        UserError: there is no such file or key, or a row has too few or too many numbers.
    """
    name, _, key = str(reference).partition("#")
    path = table_path.resolve().parent.parent / name
    data = read_yaml(path)
    if not isinstance(data.get(key), dict):
        raise UserError(f"{table_path}: published: {path} has no table {key!r}; it has {', '.join(data)}")
    entry = data[key]
    columns = tuple(entry["columns"])
    rows = []
    for label, printed in entry["rows"].items():
        numbers = str(printed).split()
        if len(numbers) != len(columns):
            raise UserError(f"{path}: {key}: row {label!r} has {len(numbers)} numbers for {len(columns)} columns")
        rows.append(Row(label, {column: Cell(text=text) for column, text in zip(columns, numbers, strict=True)}))
    return Block(f"As published: {entry['title']}", columns, tuple(rows), source=entry["source"])


def require_published(label: str, published: Block | None, table_path: Path) -> None:
    """Raise a UserError unless a row of a table is among the published ones."""
    labels = [row.label for row in published.rows] if published else []
    if label not in labels:
        raise UserError(
            f"{table_path}: row {label!r} has no published numbers; there are {', '.join(labels) or 'none'}"
        )
