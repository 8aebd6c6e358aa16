"""The doctor on a tree with planted defects: all are found, none is invented, and a stopped run goes on."""

import csv
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from trace_lightning.__main__ import main
from trace_lightning.anatomy.state import REFUSALS
from trace_lightning.config import PhantomConfig
from trace_lightning.data import doctor
from trace_lightning.data.ct_rate import volume_path
from trace_lightning.data.phantom.tree import write_tree
from trace_lightning.errors import UserError

PATIENTS = 24


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    root = tmp_path_factory.mktemp("healthy")
    write_tree(root, PhantomConfig(num_train_patients=PATIENTS, num_valid_patients=2, size=32, spacing_z_mm=[12.0]))
    return root


@pytest.fixture
def root(healthy, tmp_path):
    return shutil.copytree(healthy, tmp_path / "tree")


def change(array=lambda hu: hu, affine=lambda affine: affine):
    """Return a defect that rewrites a volume."""

    def plant(path):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(array(np.asarray(image.dataobj)), affine(image.affine)), path)

    return plant


def with_nan(hu):
    hu = hu.astype(np.float32)
    hu[4, 4, 4] = np.nan
    return hu


def zero_filled(hu):
    hu = hu.copy()
    hu[:6] = 0
    return hu


def without_lungs(hu):
    """Leave the lungs' bases, as an abdomen shows them."""
    hu = hu.copy()
    inside = hu[4:-4, 4:-4, 6:]
    inside[(inside > -960) & (inside < -300)] = 45
    return hu


def truncate(path):
    path.write_bytes(path.read_bytes()[:-500])


def closer(affine):
    """Slices half as far apart as the table says."""
    return affine @ np.diag([1, 1, 0.5, 1])


DEFECTS = {
    "rescaled_twice": change(lambda hu: hu - 1024),
    "raw_in_v2": change(lambda hu: hu + 1024),
    "wrong_intercept": change(lambda hu: hu + 8192),
    "not_finite": change(with_nan),
    "constant": change(lambda hu: hu * 0),
    "zero_filled": change(zero_filled),
    "unexplained": change(lambda hu: hu // 4),
    "unreadable": truncate,
    "spacing_impossible": change(affine=lambda affine: affine @ np.diag([1, 1, 0.003, 1])),
    "spacing_disagrees": change(affine=closer),
    "blank_header": change(affine=lambda affine: np.eye(4)),
    "too_few_slices": change(lambda hu: hu[:, :, 8:14]),
    "not_chest": change(without_lungs),
    "back_to_front": change(lambda hu: hu[:, ::-1]),
    "upside_down": change(lambda hu: hu[:, :, ::-1]),
}


def run(root, table, *options):
    code = main(["doctor", str(root), "--csv", str(table), "--jobs", "1", *options])
    with table.open(newline="") as file:
        return code, {row["volume_name"]: row for row in csv.DictReader(file)}


def test_a_healthy_tree_is_used_whole(healthy, tmp_path, capsys):
    code, rows = run(healthy, tmp_path / "doctor.csv")
    assert code == 0
    assert len(rows) == PATIENTS + 2
    assert {row["state"] for row in rows.values()} == {"hu"}
    assert f"{PATIENTS + 2} volumes, 0 refused; 0 more" in capsys.readouterr().out


def test_planted_defects_are_found_and_none_is_invented(root, tmp_path, capsys):
    planted = {}
    for number, (reason, plant) in enumerate(DEFECTS.items(), start=3):
        plant(volume_path(root, f"train_{number}_a_1"))
        planted[f"train_{number}_a_1.nii.gz"] = reason
    code, rows = run(root, tmp_path / "doctor.csv")
    assert code == 1
    assert {name: row["reason"] for name, row in rows.items() if row["state"] == "refused"} == planted
    printed = capsys.readouterr().out
    assert all(reason in printed and REFUSALS[reason] in printed for reason in DEFECTS)


@pytest.mark.slow
def test_twenty_defects_among_two_hundred_patients(tmp_path):
    """Ten kinds, two volumes each, at random; every volume is another patient."""
    kinds = (
        "rescaled_twice", "raw_in_v2", "wrong_intercept", "not_finite", "constant", "spacing_impossible",
        "too_few_slices", "not_chest", "back_to_front", "upside_down",
    )  # fmt: skip
    config = PhantomConfig(num_train_patients=180, num_valid_patients=20, size=32, spacing_z_mm=[10.0, 12.0], seed=5)
    write_tree(tmp_path, config)
    paths = sorted((tmp_path / "dataset").glob("*_fixed/*/*/*.nii.gz"))
    assert len(paths) == 200
    chosen = np.random.default_rng(0).choice(len(paths), 2 * len(kinds), replace=False)
    planted = {paths[n].name: kind for n, kind in zip(chosen, kinds * 2, strict=True)}
    for n in chosen:
        DEFECTS[planted[paths[n].name]](paths[n])
    code, rows = run(tmp_path, tmp_path / "doctor.csv")
    assert code == 1
    assert len(rows) == 200
    assert {name: row["reason"] for name, row in rows.items() if row["state"] == "refused"} == planted


def test_lists_tables_and_strays(root, tmp_path):
    metadata = root / "dataset" / "metadata"
    (metadata / "no_chest_train.txt").write_text("train_fixed/train_1/train_1_a/train_1_a_1.nii.gz\n")
    table = metadata / "train_metadata.csv"
    lines = table.read_text().splitlines()
    lines = [line.replace("[1, 0, 0, 0, 1, 0]", "[1, 0]") if "train_2_a_1" in line else line for line in lines]
    table.write_text("\n".join(line for line in lines if "train_3_a_1" not in line) + "\n")
    volume_path(root, "train_4_a_1").unlink()
    code, rows = run(root, tmp_path / "doctor.csv")
    assert code == 1
    assert {name: row["reason"] for name, row in rows.items() if row["state"] == "refused"} == {
        "train_1_a_1.nii.gz": "listed_no_chest",
        "train_2_a_1.nii.gz": "bad_metadata",
        "train_3_a_1.nii.gz": "not_listed",
    }
    assert "train_4_a_1.nii.gz" not in rows


def test_a_stopped_run_goes_on(root, tmp_path, monkeypatch):
    table = tmp_path / "doctor.csv"
    expected = run(root, table)[1]
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:6]) + lines[6][:20])  # killed in the middle of a line
    change()(volume_path(root, "train_1_a_1"))  # and a file was written again since
    examined = []
    examine = doctor.examine
    monkeypatch.setattr(doctor, "examine", lambda path, *rest: examined.append(path.name) or examine(path, *rest))
    assert run(root, table)[1].keys() == expected.keys()
    assert set(examined) == expected.keys() - {line.split(",")[0] for line in lines[2:6]}
    examined.clear()
    run(root, table)
    assert examined == []
    with pytest.raises(UserError, match="written for another tree, by other rules or with other settings"):
        run(root, table, "--min-slices", "9")


def test_processes_give_the_same_table(root, tmp_path):
    DEFECTS["rescaled_twice"](volume_path(root, "train_1_a_1"))
    for jobs in ("1", "2"):
        assert main(["doctor", str(root), "--csv", str(tmp_path / jobs), "--jobs", jobs]) == 1
    assert (tmp_path / "1").read_text() == (tmp_path / "2").read_text()


@pytest.mark.real_ct
def test_a_real_tree(real_ct, tmp_path, capsys):
    code, rows = run(real_ct, tmp_path / "doctor.csv")
    assert code == 1
    found = {name.removesuffix(".nii.gz"): (row["state"], row["reason"]) for name, row in rows.items()}
    whole = dict.fromkeys(("train_1_a_1", "train_1_a_2", "train_2_a_1", "valid_1_a_1"), ("hu", "ok"))
    half_a_thorax = dict.fromkeys(("train_3_a_1", "train_3_b_1"), ("hu", "padding"))
    assert found == whole | half_a_thorax | {"train_4_a_1": ("refused", "listed_no_chest")}
    assert all("padding at -2048 is no measurement" in rows[f"{name}.nii.gz"]["text"] for name in half_a_thorax)
    assert "padding at -2048 is no measurement" in capsys.readouterr().out
    _, rows = run(real_ct, tmp_path / "raw.csv", "--version", "v1")
    raw = {name.removesuffix(".nii.gz") for name, row in rows.items() if (row["state"], row["reason"]) == ("raw", "ok")}
    assert raw == {"train_1_a_2", "train_2_a_1", "valid_1_a_1"}


def test_every_reason_is_documented():
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text().partition("## Masks")[0]
    assert set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE)) == {"ok", "padding", *REFUSALS}
