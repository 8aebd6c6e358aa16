"""From YAML to a checked `Experiment`: defaults <- base.yaml <- profile <- experiment <- key=value, in this order.

The dataclasses (`trace_lightning.config`, and those of the baselines) hold the papers' values, `base.yaml` the protocol
that all methods share, a profile the scale (data, size, steps, device) of every method, an experiment what sets its row
apart. Of a profile and of the command line a method takes the groups of keys that are its own, and those that all have.
Lists replace; only `notes` add up. After `load` nobody needs OmegaConf.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from experiments.methods import GROUPS, METHODS, Method, method_named, resolve
from trace_lightning.config import Experiment, validate
from trace_lightning.errors import UserError

FOLDER = Path(__file__).parent
COMMAND_LINE = "command line"
DEFAULT = "default"
PLACES = ("run.", "data.root")  # where and how the work is done: overriding these keeps a row in its table
YAML_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")  # not text unless quoted
OPTIONS = {
    "seed": "--seed",
    "profile": "--profile",
    "name": "another file",
    "method": "another file",
}  # keys that no key=value may set


@dataclass(frozen=True)
class Loaded:
    """A resolved experiment.

    Attributes:
        experiment: all keys.
        sources: dotted key -> the file that set it, "default" or "command line".
        overrides: the key=value pairs that change results, normalised; such a run goes to `runs/scratch/`.
    """

    experiment: Experiment
    sources: dict[str, str]
    overrides: tuple[str, ...]

    @property
    def scratch(self) -> bool:
        """Tell whether the run differs from the committed files, so that no table may read it."""
        return bool(self.overrides)


@dataclass(frozen=True)
class Row:
    """A row of a table: an experiment, the real volumes (`ground_truth`), or numbers as published."""

    label: str
    experiment: str | None = None
    source: str = "experiment"


@dataclass(frozen=True)
class Table:
    """Which rows are run and which columns are printed; `evaluation.table` reads the same file."""

    name: str
    title: str
    columns: tuple[str, ...]
    companions: tuple[str, ...]
    published: str | None
    against: str | None
    rows: tuple[Row, ...]
    path: Path

    @property
    def experiments(self) -> tuple[str, ...]:
        """The experiments that the rows name, each once, in order."""
        return tuple(dict.fromkeys(row.experiment for row in self.rows if row.experiment))


def load(
    experiment: str | Path,
    profile: str = "phantom",
    overrides: Sequence[str] = (),
    seed: int = 0,
    complete: bool = True,
) -> Loaded:
    """Resolve and check an experiment.

    Args:
        experiment: a name such as `ours`, or a path such as `experiments/ours.yaml`; `base.yaml` and `profiles/` lie
            beside it.
        profile: a name in `profiles/`.
        overrides: `key=value` pairs; a value is read as YAML, and None (as W&B sweeps write it) is null.
        seed: the seed of training and sampling.
        complete: if false, a key that waits for an environment variable is null rather than an error.

    Raises:
        UserError: a file is absent or unreadable, a key or value is wrong, a profile and an experiment set the same
            key, or a combination has no meaning; with the key, the file and what was expected.
    """
    from omegaconf import OmegaConf

    path = find(experiment)
    if is_table(path):
        raise UserError(f"{shown(path)} is a table, not an experiment; its rows name the experiments")
    files = (path.parent / "base.yaml", _profile_path(profile, path.parent), path)
    layers = {shown(file): _leaves(read_yaml(file)) for file in files}
    _refuse_reserved(layers, path)
    replaced = _replaced(shown(path), layers[shown(path)])
    _refuse_conflicts(*list(layers.items())[1:], replaced)
    notes = [note for layer in layers.values() for note in _notes(layer)]  # they add up; all else replaces
    layers[COMMAND_LINE] = given = parse_overrides(overrides)
    method = method_named(layers[shown(path)].get("method", Experiment.method), shown(path))
    for source, layer in layers.items():
        others = [key for key in layer if not is_read(key, method)]
        if others and source == shown(path):
            raise UserError(f"{source}: {others[0]}: its method does not read the group {others[0].partition('.')[0]}")
        layers[source] = {key: value for key, value in layer.items() if key not in others}

    kind = resolve(method.keys)
    config = OmegaConf.structured(kind)
    sources = dict.fromkeys(_leaves(asdict(kind())), DEFAULT)
    for source, layer in layers.items():
        for key, value in layer.items():
            _set(config, kind, key, value, source)
            sources[key] = source
    sources |= {"seed": COMMAND_LINE, "profile": COMMAND_LINE}
    _set(config, kind, "seed", seed, COMMAND_LINE)
    _set(config, kind, "profile", profile, COMMAND_LINE)
    if notes and "notes" not in given:
        sources["notes"] = ", ".join(source for source, layer in layers.items() if layer.get("notes"))
        _set(config, kind, "notes", notes, sources["notes"])
    _resolve(config, sources, complete)
    resolved = OmegaConf.to_object(config)
    validate(resolved)
    if method.validate:
        resolve(method.validate)(resolved)
    changed = tuple(f"{key}={as_yaml(value)}" for key, value in sorted(given.items()) if not key.startswith(PLACES))
    return Loaded(resolved, sources, changed)


def load_table(table: str | Path) -> Table:
    """Read a table's YAML; every experiment that it names must lie beside it.

    Raises:
        UserError: the file is absent, unreadable, or has a key, row or source that does not belong there.
    """
    path = find(table)
    data = read_yaml(path)
    known = [field.name for field in fields(Table) if field.name != "path"]
    for key in data:
        if key not in known:
            raise UserError(f"{shown(path)}: unknown key {key!r}; a table has {', '.join(known)}")
    if data.get("name") != path.stem:
        raise UserError(f"{shown(path)}: name is the file's own name, {path.stem!r}; got {data.get('name')!r}")
    if not isinstance(data.get("rows"), list) or not data["rows"]:
        raise UserError(f"{shown(path)}: rows is a list of {{label, experiment}} or {{label, source}}")
    rows = tuple(_row(entry, path) for entry in data["rows"])
    labels = [row.label for row in rows]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise UserError(f"{shown(path)}: two rows have the label {', '.join(repeated)}")
    return Table(
        name=data["name"],
        title=str(data.get("title", "")),
        columns=tuple(data.get("columns") or ()),
        companions=tuple(data.get("companions") or ()),
        published=data.get("published"),
        against=data.get("against"),
        rows=rows,
        path=path,
    )


def is_table(path: Path) -> bool:
    """Tell whether a YAML file is a table (it has rows) or an experiment."""
    return "rows" in read_yaml(path)


def find(name: str | Path) -> Path:
    """Return the file of an experiment or table given by its path, or by its name in the project's own folder.

    Raises:
        UserError: there is none; lists those there.
    """
    path = Path(name) if str(name).endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not path.is_file():
        there = sorted(
            file.stem
            for file in path.parent.glob("*.yaml")
            if file.stem not in ("base", "bench", "dashboard", "published")
        )
        raise UserError(f"{shown(path)}: no such file; {shown(path.parent)} has {', '.join(there) or 'no .yaml file'}")
    return path


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; a duplicate key is an error, `1e-4` is a number.

    Raises:
        UserError: absent, not readable as YAML, or not a mapping.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        data = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError:
        raise UserError(f"{shown(path)}: no such file") from None
    except (YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException) as error:
        raise UserError(f"{shown(path)}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"{shown(path)}: expected a mapping `key: value`, found a {type(data).__name__}")
    return data


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return dotted key -> value of `key=value` pairs.

    Raises:
        UserError: a pair is not written as key=value, is given twice, or belongs to an option.
    """
    from omegaconf import OmegaConf
    from yaml import YAMLError

    given: dict[str, Any] = {}
    for pair in overrides:
        key, equals, text = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            hint = f"; write {pair.lstrip('-')}" if key.startswith("-") and equals else ", as train.lr=1e-4"
            raise UserError(f"{pair!r} is not a key=value pair{hint}")
        if key in OPTIONS:
            raise UserError(f"{pair}: {key} is given by {OPTIONS[key]}, not as key=value")
        try:
            # A W&B sweep writes null as None, which YAML would read as a word.
            value = None if text == "None" else OmegaConf.to_container(OmegaConf.create(f"value: {text}"))["value"]
        except YAMLError as error:
            raise UserError(f"{pair}: {text!r} is not readable as YAML: {' '.join(str(error).split())}") from None
        for leaf, leaf_value in _leaves({key: value}).items():
            if leaf in given:
                raise UserError(f"{pair}: {leaf} is given twice on the command line")
            given[leaf] = leaf_value
    return given


def describe(loaded: Loaded) -> str:
    """Return the resolved config as YAML, each value with the file that set it as a comment."""
    lines: list[tuple[str, str]] = []
    headings: set[str] = set()
    method = METHODS[loaded.experiment.method]
    for key, value in leaves(loaded.experiment).items():
        if not is_read(key, method):
            continue
        *parents, name = key.split(".")
        for depth, parent in enumerate(parents):
            section = ".".join(parents[: depth + 1])
            if section not in headings:
                headings.add(section)
                lines.append((f"{'  ' * depth}{parent}:", ""))
        lines.append((f"{'  ' * len(parents)}{name}: {as_yaml(value)}", f"# {loaded.sources[key]}"))
    return "".join(f"{text:<48}  {source}".rstrip() + "\n" for text, source in lines)


def is_read(key: str, method: Method) -> bool:
    """Tell whether a method reads a dotted key: all but the groups of other methods."""
    group = key.partition(".")[0]
    return group not in GROUPS or group in method.groups


def leaves(experiment: Experiment) -> dict[str, Any]:
    """Return dotted key -> value of all keys of an experiment."""
    return _leaves(asdict(experiment))


def profiles(folder: Path = FOLDER) -> list[str]:
    """Return the names of the profiles."""
    return sorted(path.stem for path in (folder / "profiles").glob("*.yaml"))


def shown(path: Path) -> str:
    """Return a path as messages show it: from the project's root where it lies inside."""
    path = Path(path).absolute()
    return str(path.relative_to(FOLDER.parent)) if path.is_relative_to(FOLDER.parent) else str(path)


def _profile_path(profile: str, folder: Path) -> Path:
    if profile not in profiles(folder):
        raise UserError(f"no profile {profile!r}; {shown(folder / 'profiles')} has {', '.join(profiles(folder))}")
    return folder / "profiles" / f"{profile}.yaml"


def _leaves(data: dict[str, Any]) -> dict[str, Any]:
    """Flatten nested mappings to dotted keys; an empty mapping stays a leaf, so that it is checked like one."""

    def walk(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, dict) and value:
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(walk(data, ""))


def _refuse_reserved(layers: dict[str, dict[str, Any]], path: Path) -> None:
    for source, layer in layers.items():
        for key in ("seed", "profile"):
            if key in layer:
                raise UserError(f"{source}: {key} is not set in a file; it is given by {OPTIONS[key]}")
        if "name" in layer and source != shown(path):
            raise UserError(f"{source}: name belongs to an experiment")
    if layers[shown(path)].get("name") != path.stem:
        got = layers[shown(path)].get("name")
        raise UserError(f"{shown(path)}: name is the file's own name, {path.stem!r}; got {got!r}")


def _replaced(source: str, layer: dict[str, Any]) -> list[str]:
    """Take `replaces` out of an experiment: the keys that it sets although profiles may, as its row is about them."""
    replaced = layer.pop("replaces", [])
    if not isinstance(replaced, list) or not all(key in layer for key in replaced):
        raise UserError(
            f"{source}: replaces lists keys that this file sets too, as [model.mask_encoding]; got {replaced}"
        )
    return replaced


def _refuse_conflicts(
    profile: tuple[str, dict[str, Any]], experiment: tuple[str, dict[str, Any]], replaced: list[str]
) -> None:
    for key in profile[1]:
        if key in experiment[1] and key != "notes" and key not in replaced:
            raise UserError(
                f"{key} is set by both {profile[0]} and {experiment[0]}: profiles own the scale, experiments what "
                "sets their row apart; leave it in one of them, or list it under replaces in the experiment"
            )


def _notes(layer: dict[str, Any]) -> list[Any]:
    notes = layer.get("notes")
    return notes if isinstance(notes, list) else []


def _set(config: Any, kind: type[Experiment], key: str, value: Any, source: str) -> None:
    """Set one key of the structured config, or say what was expected."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    expected = _expected(kind, key)
    try:
        if expected is None and _expected(kind, key.rpartition(".")[0]) is not None:
            raise UserError(f"{source}: {key}: {key.rpartition('.')[0]} is set as a whole, as key=[1, 2]")
        OmegaConf.update(config, key, value, merge=False)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        if expected is None:
            raise UserError(f"{source}: {key}: {reason}") from None
        raise UserError(f"{source}: {key}={as_yaml(value)}: expected {expected} ({reason})") from None


def _expected(kind: type[Experiment], key: str) -> str | None:
    """Return the type of a leaf as the dataclasses write it, or None if it is not a leaf."""
    node: Any = kind()
    *parents, name = key.split(".")
    for parent in parents:
        node = getattr(node, parent, None)
    if not is_dataclass(node):
        return None
    annotations = {field.name: str(field.type) for field in fields(node) if not is_dataclass(getattr(node, field.name))}
    return annotations.get(name)


def _resolve(config: Any, sources: dict[str, str], complete: bool) -> None:
    """Replace interpolations by their values."""
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationResolutionError

    for key, source in sources.items():
        try:
            OmegaConf.update(config, key, OmegaConf.select(config, key), merge=False)
        except InterpolationResolutionError as error:
            reason = re.sub(r".*: \"(.*)\"$", r"\1", str(error).splitlines()[0])
            if complete:
                raise UserError(f"{source}: {key}: {reason}; set it, or give {key}=VALUE") from None
            OmegaConf.update(config, key, None)
            sources[key] = f"{source}: {reason[0].lower()}{reason[1:]}"


def _row(entry: Any, path: Path) -> Row:
    if not isinstance(entry, dict) or not entry.get("label") or not set(entry) <= {"label", "experiment", "source"}:
        raise UserError(f"{shown(path)}: a row is {{label, experiment}} or {{label, source}}; got {entry}")
    row = Row(**{key: str(value) for key, value in entry.items()})
    if (row.experiment is None) != (row.source in ("ground_truth", "published")):
        raise UserError(f"{shown(path)}: row {row.label!r}: give an experiment, or source ground_truth or published")
    if row.experiment is not None and not (path.parent / f"{row.experiment}.yaml").is_file():
        raise UserError(f"{shown(path)}: row {row.label!r}: no experiment {row.experiment!r} in {shown(path.parent)}")
    return row


def as_yaml(value: Any) -> str:
    """Return a value as YAML on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(as_yaml(item) for item in value)}]"
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z_/][\w./+-]*", value) and value.lower() not in YAML_WORDS
        return value if plain else json.dumps(value, ensure_ascii=False)
    return str(value)
