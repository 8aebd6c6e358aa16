import sys
from pathlib import Path

import pytest
from local_slurm import local_slurm, why_not

sys.path.append(str(Path(__file__).parents[1] / "experiments"))


@pytest.fixture(scope="session")
def slurm_environment(tmp_path_factory: pytest.TempPathFactory):
    """The variables by which commands find a Slurm that runs for these tests."""
    if reason := why_not():
        pytest.skip(reason)
    with local_slurm(tmp_path_factory.mktemp("slurm"), cpus=2) as environment:
        yield {key: environment[key] for key in ("SLURM_CONF", "PATH")}
