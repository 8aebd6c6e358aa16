"""Imports point one way: experiments -> evaluation, baselines, trace_lightning; inside these down to the leaves."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("trace_lightning", "evaluation", "baselines", "experiments")
LEAVES = {f"trace_lightning.{name}" for name in ("anatomy", "artifacts", "config", "errors", "protocol")}
DATA = LEAVES | {"trace_lightning.data", "trace_lightning.device", "trace_lightning.ranks"}
MODELS = {"trace_lightning.models", "trace_lightning.config", "trace_lightning.errors", "trace_lightning.anatomy"}
BASELINE = DATA | {
    "trace_lightning.fitting",
    "trace_lightning.stopwatch",
}  # what every method shares, and nothing of TRACE's own
SAMPLING = MODELS | {"trace_lightning.sampling"}

# Each folder or file, and what it may import of ours. The first that fits a file holds.
MAY_IMPORT: list[tuple[str, set[str]]] = [
    ("trace_lightning/anatomy/", {"trace_lightning.anatomy", "trace_lightning.errors"}),
    ("trace_lightning/errors.py", set()),
    ("trace_lightning/config.py", {"trace_lightning.anatomy", "trace_lightning.errors"}),
    ("trace_lightning/artifacts.py", {"trace_lightning.anatomy", "trace_lightning.errors"}),
    ("trace_lightning/protocol.py", {"trace_lightning.anatomy", "trace_lightning.artifacts"}),
    ("trace_lightning/data/", DATA),
    ("trace_lightning/models/", MODELS),
    ("trace_lightning/sampling/", SAMPLING),
    ("trace_lightning/", {"trace_lightning"}),
    ("evaluation/", {"evaluation", *(f"trace_lightning.{name}" for name in ("anatomy", "artifacts", "errors"))}),
    ("baselines/ctflow/", BASELINE | {"baselines.ctflow"}),
    ("baselines/generatect/", BASELINE | {"baselines.generatect"}),
    ("baselines/", set()),
    ("experiments/", set(OURS)),
]
# Third-party packages that a folder or file must do without, even inside functions. The first that fits a file holds.
MUST_NOT_IMPORT = {
    "trace_lightning/models/": {"lightning"},
    "trace_lightning/anatomy/vista3d.py": {"lightning"},  # a network, imported when it is asked for
    "trace_lightning/anatomy/": {"torch", "lightning"},
    "trace_lightning/artifacts.py": {"torch", "lightning"},
    "evaluation/": {"lightning", "diffusers"},
    "baselines/generatect/models/": {"lightning"},
}


def files() -> list[Path]:
    return sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))


def imports_of(path: Path, root: Path = ROOT) -> set[str]:
    """Return the modules that a file imports anywhere, relative ones made absolute."""
    package = list(path.relative_to(root).with_suffix("").parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def violations(path: Path, root: Path = ROOT) -> list[str]:
    name = path.relative_to(root).as_posix()
    allowed = next(may for prefix, may in MAY_IMPORT if name.startswith(prefix))
    banned = next((packages for prefix, packages in MUST_NOT_IMPORT.items() if name.startswith(prefix)), set())
    wrong = []
    for module in sorted(imports_of(path, root)):
        top = module.split(".")[0]
        ours_refused = top in OURS and not any(f"{module}.".startswith(f"{may}.") for may in allowed)
        if ours_refused or top in banned:
            wrong.append(f"{name}: {module}")
    return wrong


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path):
    assert violations(path) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("evaluation/bad.py", "from trace_lightning.models.denoiser import Denoiser"),
        ("evaluation/bad.py", "def f():\n    import trace_lightning.sampling.overlap"),
        ("trace_lightning/data/bad.py", "from trace_lightning import models"),
        ("trace_lightning/data/bad.py", "from ..models import denoiser"),
        ("trace_lightning/models/bad.py", "import lightning.pytorch as pl"),
        ("trace_lightning/anatomy/bad.py", "from trace_lightning.artifacts import Volume"),
        ("trace_lightning/anatomy/bad.py", "def f():\n    import torch"),
        ("trace_lightning/sampling/bad.py", "from trace_lightning.module import TraceModule"),
        ("trace_lightning/bad.py", "import experiments.load"),
        ("baselines/ctflow/bad.py", "from trace_lightning.models.denoiser import Denoiser"),
        ("baselines/ctflow/bad.py", "from baselines.another import module"),
        ("trace_lightning/bad.py", "import baselines.ctflow"),
        ("baselines/generatect/bad.py", "from trace_lightning.module import TraceModule"),
        ("baselines/generatect/models/bad.py", "import lightning"),
    ],
)
def test_a_wrong_import_is_found(tmp_path, name, text):
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert len(violations(path, tmp_path)) == 1


def test_anatomy_and_artifacts_load_no_network_library():
    code = (
        "import sys, trace_lightning.artifacts, trace_lightning.data.masks, trace_lightning.anatomy.threshold\n"
        "print({'torch', 'monai', 'lightning', 'scipy', 'huggingface_hub'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "set()"


def test_there_is_one_table_of_methods():
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                asks = any(isinstance(side, ast.Attribute) and side.attr == "method" for side in sides)
                assert not (asks and any(isinstance(side, ast.Constant) for side in sides)), f"{path}:{node.lineno}"
