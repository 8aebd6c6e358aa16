"""The estimate of each method runs in the profiles that this machine can run, and is positive."""

from __future__ import annotations

import pytest

from experiments.load import load
from experiments.methods import method_of, resolve


@pytest.mark.parametrize("name", ["ctflow", "ctflow_as_published", "generatect", "generatect_as_published"])
def test_the_estimate_of_a_row_is_positive(name):
    experiment = load(name, "smoke").experiment
    found = resolve(method_of(experiment).cost)(experiment, num_volumes=6, num_slices=16)
    assert set(found) == {"parameters", "train_seconds", "generate_seconds_per_slice", "memory_bytes"}
    assert all(value > 0 for value in found.values())
