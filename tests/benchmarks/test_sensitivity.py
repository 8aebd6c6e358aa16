from dataclasses import replace

import numpy as np
import pytest

from benchmarks import perturbations, sensitivity
from benchmarks.perturbations import COLUMNS, ORGANS, PERTURBATIONS, Chest
from benchmarks.sensitivity import Cell, Size, claims, report, run, violations
from trace_lightning.errors import UserError

SMALL = Size(volumes=3, size=72, slices=24)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A small run without weights."""
    root = tmp_path_factory.mktemp("sensitivity")
    return run(root / "run", SMALL, root / "no weights")


@pytest.mark.slow
def test_each_perturbation_moves_what_it_should_and_nothing_that_it_should_not(found):
    matrix, wrong = found
    assert wrong == []
    checked = [matrix[key][name] for key in matrix for name in claims(key) if matrix[key][name].value is not None]
    assert len(checked) > 100
    assert {cell.moved for cell in checked} == {-1, 0, 1}


@pytest.mark.slow
def test_values_that_are_known(found):
    matrix, _ = found
    itself = {name: cell.value for name, cell in matrix["none"].items()}
    assert [itself[name] for name in ("dice", "jaccard", "labels.dice", "labels.jaccard")] == [1, 1, 1, 1]
    assert [itself[name] for name in ("hd95_mm", "labels.hd95_mm", "missed", "drift_hu", "drift_range_hu")] == [0] * 5
    assert matrix["erased"]["labels.missed"].value == 3
    assert matrix["erased"]["labels.dice"].value == pytest.approx(17 / 20)
    assert matrix["body"]["labels.hd95_mm"].value == pytest.approx(5, abs=0.3)
    assert matrix["repeated"]["seam_ratio"].value == 0
    assert matrix["another"]["temporal_flickering"].value == pytest.approx(itself["temporal_flickering"])
    assert all(
        cell.value is None for row in matrix.values() for name, cell in row.items() if name in ("lpips", "fvd_i3d")
    )


@pytest.mark.slow
def test_the_check_can_fail(found):
    matrix, _ = found
    swapped = matrix | {"noisy": matrix["blurred"]}
    assert any(line.startswith("noisy: lung_texture_hu must rise") for line in violations(swapped))
    assert "did not hold" in report(swapped, SMALL, violations(swapped))


@pytest.mark.slow
def test_the_report_has_a_line_for_each_perturbation_in_each_table(found):
    text = report(*found[:1], SMALL, found[1])
    for perturbation in PERTURBATIONS.values():
        assert text.count(f"| {perturbation.title} |") == len(COLUMNS)
    assert "| 3 of 20 organs erased | **85.0 ▼** | **85.0 ▼** |" in text
    assert "all of it held" in text


def test_distances_between_sets_move_where_they_leave_the_floor():
    def moved(low, floor):
        entry = {"value": 5.0, "low": low, "high": 9.0, "floor": floor, "statistic": "set"}
        return sensitivity._cell("fd_alexnet", ({"fd_alexnet": entry}, {}, {}), ({}, {}, {})).moved

    assert [moved(4.0, 3.0), moved(2.0, 3.0), moved(None, 3.0), moved(4.0, None)] == [1, 0, 0, 0]
    row = {name: Cell(None) for names in COLUMNS.values() for name in names}
    assert violations({"none": row, "blurred": row}) == []


def test_no_claim_is_made_twice():
    for row in PERTURBATIONS.values():
        names = (*row.rises, *row.falls, *row.stays)
        assert len(set(names)) == len(names)
        assert set(names) <= {name for group in COLUMNS.values() for name in group}
    assert len(ORGANS) == len(set(ORGANS)) == 20
    assert set(perturbations.ERASED) < set(ORGANS)


def test_perturbations_by_hand():
    hu, labels = (
        np.arange(8, dtype=np.int16)[:, None, None] * np.ones((1, 2, 4), np.int16),
        np.zeros((8, 2, 4), np.uint8),
    )
    labels[:, 0, 1] = perturbations.HEART
    chest, rng = Chest(hu, labels, (5.0, 5.0, 5.0)), np.random.default_rng(0)
    assert perturbations.repeated(chest, chest, rng)[0][:, 0, 0].tolist() == [0, 1, 1, 3, 3, 5, 5, 7]
    assert sorted(perturbations.shuffled(chest, chest, rng)[0][:, 0, 0].tolist()) == list(range(8))
    moved_hu, moved = perturbations.organ_shifted(chest, chest, rng)
    assert (moved[:, 0] == [0, 0, perturbations.HEART, 0]).all()
    assert (moved_hu[:, 0, 1] == perturbations.SOFT_TISSUE_HU).all()
    assert (moved_hu[:, 0, 2] == hu[:, 0, 1]).all()
    with pytest.raises(ValueError, match="whole"):
        perturbations.body_shifted(replace(chest, spacing_mm=(5.0, 3.0, 3.0)), chest, rng)


@pytest.mark.parametrize("wrong", [{"volumes": 1}, {"size": 96}, {"slices": 4}])
def test_sizes_are_checked(wrong):
    with pytest.raises(UserError, match="--"):
        Size(**wrong)
