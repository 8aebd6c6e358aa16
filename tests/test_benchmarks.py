import sys

import numpy as np
import pytest

from benchmarks import evaluation, parity_fidelity
from benchmarks.row import Row, timed


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(parity_fidelity, "SHAPE", (24, 40, 40))
    organs = parity_fidelity.warped_organs
    monkeypatch.setattr(parity_fidelity, "warped_organs", lambda: organs((24, 40, 40), 3))


def test_all_that_is_installed_agrees(small, capsys):
    assert evaluation.main(["fidelity", "--width", "200"]) == 0
    printed = capsys.readouterr().out
    for part in ("MONAI", "SimpleITK", "hd95_mm", "not run: needs an environment"):
        assert part in printed


def test_an_environment_without_the_packages_gives_a_reason(small):
    rows = list(parity_fidelity.rows(sys.executable))
    assert {row.tool for row in rows if row.theirs is None} == {"surface-distance", "medpy"}
    assert all("No module named" in row.note for row in rows if row.theirs is None)


def test_values_that_should_be_equal_and_are_not_are_reported(monkeypatch, capsys):
    monkeypatch.setattr(parity_fidelity, "rows", lambda others: iter([Row("dice", "other", 0.5, 0.6, tolerance=1e-6)]))
    assert evaluation.main(["fidelity"]) == 1
    assert "NO" in capsys.readouterr().out


@pytest.mark.slow
def test_ten_times_as_fast_as_monai_at_equal_value():
    made, real = parity_fidelity.warped_organs()
    ids = [int(i) for i in np.unique(real) if i]
    found, seconds = timed(
        lambda: parity_fidelity.overlaps(made, real, parity_fidelity.SPACING_MM, {str(i): [i] for i in ids}), 3
    )
    rows = list(parity_fidelity._monai(made, real, ids, [found[str(i)] for i in ids], seconds))
    assert all(row.agrees for row in rows)
    assert rows[-1].their_seconds > 10 * rows[-1].our_seconds
