"""A CTFlow of few weights on three phantom chests of 32 x 32 pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
from ctflow_small import silent, small_experiment

from baselines.ctflow.config import CTFlowExperiment
from trace_lightning.data.cache import prepare


@pytest.fixture
def small(tmp_path) -> CTFlowExperiment:
    """The small experiment, its data not prepared."""
    return small_experiment(tmp_path)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> CTFlowExperiment:
    """The small experiment, prepared; not to be changed by a test."""
    experiment = small_experiment(tmp_path_factory.mktemp("cache"))
    prepare(experiment, silent)
    return experiment


@pytest.fixture(scope="session")
def trained(prepared, tmp_path_factory) -> Path:
    """A finished training of `prepared`."""
    from baselines.ctflow.training import train

    folder = tmp_path_factory.mktemp("training")
    train(prepared, folder, silent)
    return folder
