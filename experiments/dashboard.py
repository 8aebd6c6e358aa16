"""Creates the W&B workspace that `dashboard.yaml` describes; needs the package wandb-workspaces, and a key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.load import FOLDER, read_yaml, shown
from trace_lightning.errors import UserError

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

FILE = FOLDER / "dashboard.yaml"
SHOWN = {  # kind of panel -> its keys that name what is logged
    "LinePlot": ("x", "y"),
    "ScatterPlot": ("x", "y"),
    "BarPlot": ("metrics",),
    "MediaBrowser": ("media_keys",),
    "WeavePanelSummaryTable": ("table_name",),
}


def create(project: str, file: Path = FILE) -> str:
    """Create the workspace in a project, `ENTITY/PROJECT`, and return its address.

    Raises:
        UserError: the package is not installed, the file is wrong, or the project is not named as it should be.
    """
    workspace = build(project, file)
    workspace.save()
    return workspace.url


def build(project: str, file: Path = FILE) -> Workspace:
    """Return the workspace, ready to be saved; no network is touched."""
    entity, slash, name = project.partition("/")
    if not (entity and slash and name):
        raise UserError(f"{project}: a project of W&B is named ENTITY/PROJECT")
    sections = list(read(file))
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ModuleNotFoundError:
        raise UserError(
            f"dashboards are created by the package wandb-workspaces: pip install wandb-workspaces; {shown(file)} "
            "says which panels there are, for those who add them by hand"
        ) from None

    drawn = [
        workspaces.Section(title, [getattr(reports, kind)(**keys) for kind, keys in panels], is_open=True)
        for title, panels in sections
    ]
    return workspaces.Workspace(entity, name, read_yaml(file)["name"], drawn)


def read(file: Path = FILE) -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """Yield the sections of a file: a title, and its panels as kind and keys.

    Raises:
        UserError: a panel is of no known kind, or shows nothing.
    """
    for section in read_yaml(file).get("sections") or ():
        panels = []
        for panel in section["panels"]:
            keys = dict(panel)
            kind = keys.pop("kind", None)
            if kind not in SHOWN or not all(keys.get(key) for key in SHOWN[kind]):
                kinds = "; ".join(f"{kind} with {', '.join(names)}" for kind, names in SHOWN.items())
                raise UserError(f"{shown(file)}: {section['name']}: {panel}: a panel is one of {kinds}")
            panels.append((kind, keys))
        yield section["name"], panels


def names(file: Path = FILE) -> set[str]:
    """Return all names of metrics, pictures and tables that the panels show."""
    found: set[str] = set()
    for _, panels in read(file):
        for kind, keys in panels:
            for key in SHOWN[kind]:
                found |= set(keys[key]) if isinstance(keys[key], list) else {keys[key]}
    return found
