from pathlib import Path

import pytest
from fake_project import FAKE
from project import Project, write_tree

from experiments.methods import METHODS


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("ct"))


@pytest.fixture
def project(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setitem(METHODS, "fake", FAKE)
    return Project(tmp_path / "project", tree)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Project:
    """A table that ran to its end, not to be changed."""
    project = Project(tmp_path_factory.mktemp("finished") / "project", tree)
    project.output = project.run("run", project.table("full", "independent", "blind"), "--jobs", "2")
    assert project.output.returncode == 0, project.output.stdout + project.output.stderr
    return project
