import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_lightning.config import DataConfig
from trace_lightning.data.ct_rate import Index, Scan, choose, read_index, split
from trace_lightning.errors import NotEnoughPatients, UserError


def ids(scans):
    return [scan.case_id for scan in scans]


def test_the_index_joins_metadata_reports_and_folders(tree, make_chest):
    tree.add("train_10_a_1", make_chest(), impression='A "small" nodule.', PatientSex="F", PatientAge="036Y")
    tree.add("train_2_a_2")
    tree.add("train_2_a_1")
    tree.add("valid_1_a_1")
    del tree.reports["train"]["train_2_a_1"]
    index = read_index(tree.write_tables().root)
    assert ids(index.scans) == ["train_2_a_1", "train_2_a_2", "train_10_a_1", "valid_1_a_1"]
    scan = index.scans[2]
    assert (scan.patient, scan.split, scan.age_years, scan.sex, scan.num_slices) == (
        "train_10",
        "train",
        36,
        "female",
        12,
    )
    assert scan.prompt("impression") == "36 years old female: A small nodule."
    assert scan.path == tree.path("train_10_a_1")
    assert scan.path.is_file()
    assert index.scans[0].impression is None


def test_prompts_from_findings(tree, make_chest):
    for case_id in ("train_1_a_1", "train_2_a_1", "valid_1_a_1"):
        tree.add(case_id, make_chest(), impression="Nodule.")
    data = DataConfig(num_train_patients=2, num_val_patients=0, num_test_patients=1, prompt="findings")
    with pytest.raises(UserError, match=r"train_reports.csv: no volume has findings \(column Findings_EN\)"):
        split(read_index(tree.write_tables().root), data)
    tree.findings = {"train_1_a_1": "A nodule of 4 mm.", "valid_1_a_1": "Not given."}
    chosen = split(read_index(tree.write_tables().root), data)
    scans = {scan.case_id: scan for scan in chosen.scans}
    assert scans["train_1_a_1"].prompt("findings") == "58 years old male: A nodule of 4 mm."
    assert scans["train_1_a_1"].prompt("both") == "58 years old male: Nodule. A nodule of 4 mm."
    assert scans["train_2_a_1"].prompt("findings") == "58 years old male"
    assert scans["valid_1_a_1"].prompt("both", length_mm=72.0) == "58 years old male, scan length 72 mm: Nodule."


def test_who_is_excluded_leaves_the_others_where_they_are(tree):
    """However a patient falls out (by list, by age, by slices), the next takes the place and nobody else moves."""
    for n in range(1, 31):
        tree.add(f"train_{n}_a_1")
        tree.add(f"valid_{n}_a_1")
    data = DataConfig(num_train_patients=10, num_val_patients=3, num_test_patients=6)
    before = choose(read_index(tree.write_tables().root), data)
    out = {"list": before.train[2], "age": before.train[7], "slices": before.val[1], "test": before.test[0]}
    tree.no_chest["train"] = [out["list"].case_id]
    tree.no_chest["valid"] = [out["test"].case_id]
    tree.metadata["train"][out["age"].case_id]["PatientAge"] = "old"
    tree.metadata["train"][out["slices"].case_id]["NumberofSlices"] = 2
    after = choose(read_index(tree.write_tables().root), data)
    gone = {scan.case_id for scan in out.values()}
    for part, new in (("train", 2), ("val", 1), ("test", 1)):
        then, now = set(ids(getattr(before, part))), set(ids(getattr(after, part)))
        assert then - gone < now
        assert len(now - then) == new
    order = [case_id for case_id in ids(before.train) if case_id not in gone]
    assert [case_id for case_id in ids(after.train) if case_id in order] == order


def test_excluded_volumes_are_recorded_with_their_reason(tree):
    tree.add("train_1_a_1")
    tree.add("train_2_a_1", PatientAge="old")
    tree.add("train_3_a_1", NumberofSlices=3)
    tree.add("train_4_a_1", NumberofSlices="")
    tree.add("valid_1_a_1")
    tree.no_chest["train"] = ["train_1_a_1"]
    index = read_index(tree.write_tables().root)
    data = DataConfig(num_train_patients=9, num_val_patients=0, num_test_patients=1)
    with pytest.raises(NotEnoughPatients, match=r"asks for 9 training patients.*; 1 are there"):
        split(index, data)
    tree.write_volume("train_4_a_1", np.zeros((9, 4, 4)))
    tree.write_volume("valid_1_a_1", np.zeros((9, 4, 4)))
    data.num_train_patients = 1
    excluded = {e.case_id: e.reason for e in split(index, data).excluded}
    assert excluded.keys() == {"train_1_a_1", "train_2_a_1", "train_3_a_1"}
    assert "no_chest_train.txt" in excluded["train_1_a_1"]
    assert "PatientAge 'old'" in excluded["train_2_a_1"]
    assert "3 slices" in excluded["train_3_a_1"]


@pytest.mark.parametrize(("table", "column"), [("metadata_table", "PatientAge"), ("report_table", "Impressions_EN")])
def test_a_missing_column_is_named_with_its_file(tree, table, column):
    tree.add("train_1_a_1")
    tree.add("valid_1_a_1")
    path = getattr(tree.write_tables(), table)("valid")
    with path.open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k != column} for row in csv.DictReader(file)]
    tree._table(path, list(rows[0]), rows)
    with pytest.raises(UserError, match=f"{path.name}.*column {column} is missing"):
        read_index(tree.root)


@pytest.mark.parametrize("name", ["metadata/train_metadata.csv", "metadata/no_chest_valid.txt"])
def test_a_missing_file_is_named(tree, name):
    tree.add("train_1_a_1")
    tree.write_tables()
    (tree.root / "dataset" / name).unlink()
    with pytest.raises(UserError, match=f"{name}: no such file"):
        read_index(tree.root)


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no CT-RATE tree here; data\.root is the folder"):
        read_index(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "message"), [("head_1_a_1", "not a CT-RATE volume name"), ("valid_1_a_1", "not of the train split")]
)
def test_a_strange_volume_name_is_refused(tree, name, message):
    tree.metadata["train"][name] = {"PatientSex": "M", "PatientAge": "", "NumberofSlices": 9}
    with pytest.raises(UserError, match=f"train_metadata.csv.*{name}.*{message}"):
        read_index(tree.write_tables().root)


def test_a_volume_listed_twice_is_refused(tree):
    tree.add("train_1_a_1")
    tree.write_tables()
    with tree.metadata_table("train").open("a") as file:
        file.write("train_1_a_1.nii.gz,M,058Y,12\n")
    with pytest.raises(UserError, match="train_1_a_1 is listed twice"):
        read_index(tree.root)


def test_an_absent_volume_is_an_error_only_if_it_is_chosen(tree, make_chest):
    for n in range(1, 5):
        tree.add(f"train_{n}_a_1")
    tree.add("valid_1_a_1", make_chest())
    index = read_index(tree.write_tables().root)
    data = DataConfig(num_train_patients=1, num_val_patients=0, num_test_patients=1)
    with pytest.raises(UserError, match=r"is listed in .*train_metadata.csv but not found at .*nii\.gz") as error:
        split(index, data)
    chosen = str(error.value).split()[0]
    tree.write_volume(chosen, make_chest())
    assert ids(split(index, data).train) == [chosen]


@pytest.mark.parametrize("empty", ["train", "valid"])
def test_an_empty_split_is_an_error(tree, make_chest, empty):
    for name in ("train", "valid"):
        tree.add(f"{name}_1_a_1", make_chest())
    tree.no_chest[empty] = [f"{empty}_1_a_1"]
    index = read_index(tree.write_tables().root)
    with pytest.raises(UserError, match=rf"the {empty} split is empty.*\(1 excluded\)"):
        split(index, DataConfig(num_train_patients=1, num_val_patients=0, num_test_patients=1))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"num_train_patients": 7}, "asks for 7 training patients .*; 6 are there"),
        ({"num_val_patients": 3}, "asks for 3 validation patients .*; 2 are there"),
        ({"num_test_patients": 3}, "asks for 3 test patients .*; 2 are there"),
    ],
)
def test_too_few_patients_are_counted(file_of_all, part, message):
    data = DataConfig(**{"num_train_patients": 4, "num_val_patients": 2, "num_test_patients": 2} | part)
    with pytest.raises(NotEnoughPatients, match=message):
        split(listed(file_of_all, 6, 2), data)


def test_reconstructions(file_of_all):
    data = DataConfig(num_train_patients=5, num_val_patients=0, num_test_patients=1)
    index = listed(file_of_all, 5, 1, per_patient=3)
    assert all(case_id.endswith("_a_1") for case_id in ids(split(index, data).train))
    data.reconstructions = "all"
    assert len(split(index, data).train) == 15


@pytest.fixture(scope="module")
def file_of_all(tmp_path_factory) -> Path:
    """A file that stands for every volume."""
    path = tmp_path_factory.mktemp("volumes") / "any.nii.gz"
    path.touch()
    return path


def listed(path: Path, num_train: int, num_valid: int, per_patient: int = 2) -> Index:
    scans = [
        Scan(f"{name}_{n}_a_{r}", f"{name}_{n}", name, path, None, None, None)
        for name, number in (("train", num_train), ("valid", num_valid))
        for n in range(1, number + 1)
        for r in range(1, per_patient + 1)
    ]
    return Index(path.parent, tuple(scans), ())


@given(
    num=st.integers(1, 30),
    rest=st.integers(0, 5),
    fractions=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    seed=st.integers(0, 9),
    which=st.sampled_from(["first", "all"]),
)
def test_patients_never_cross_and_smaller_sets_lie_in_larger_ones(file_of_all, num, rest, fractions, seed, which):
    index = listed(file_of_all, num + rest, 3)
    small, large = (
        split(
            index,
            DataConfig(
                num_train_patients=num,
                train_fraction=fraction,
                num_val_patients=rest,
                num_test_patients=2,
                split_seed=seed,
                reconstructions=which,
            ),
        )
        for fraction in sorted(fractions)
    )
    for chosen in (small, large):
        patients = [{scan.patient for scan in part} for part in (chosen.train, chosen.val, chosen.test)]
        assert sum(map(len, patients)) == len(set().union(*patients))
        assert {scan.split for scan in chosen.train + chosen.val} == {"train"}
        assert {scan.split for scan in chosen.test} == {"valid"}
    assert large.train[: len(small.train)] == small.train
    assert (small.val, small.test) == (large.val, large.test)
    assert len({scan.patient for scan in small.train}) == math.ceil(round(min(fractions) * num, 6))


def test_fractions_count_patients_exactly(file_of_all):
    index = listed(file_of_all, 100, 1, per_patient=1)
    data = DataConfig(num_val_patients=0, num_test_patients=1)
    for fraction, expected in ((0.07, 7), (0.5, 50), (0.001, 1), (1.0, 100)):
        data.train_fraction = fraction
        assert len(split(index, data).train) == expected


def test_the_seed_decides(file_of_all):
    index = listed(file_of_all, 40, 10)
    data = DataConfig(num_train_patients=20, num_val_patients=5, num_test_patients=5)
    assert split(index, data) == split(index, data)
    other = split(index, DataConfig(num_train_patients=20, num_val_patients=5, num_test_patients=5, split_seed=1))
    assert other.train != split(index, data).train
    assert other.test != split(index, data).test


@pytest.mark.real_ct
def test_real_ct_excludes_the_abdomen_and_keeps_the_valid_patient_for_the_test(real_ct):
    data = DataConfig(num_train_patients=3, num_val_patients=0, num_test_patients=1, reconstructions="all")
    chosen = split(read_index(real_ct), data)
    assert [(e.case_id, "no_chest_train.txt" in e.reason) for e in chosen.excluded] == [("train_4_a_1", True)]
    assert ids(chosen.test) == ["valid_1_a_1"]
    assert sorted(ids(chosen.train)) == ["train_1_a_1", "train_1_a_2", "train_2_a_1", "train_3_a_1", "train_3_b_1"]
    prompts = {scan.case_id: scan.prompt("impression") for scan in chosen.scans}
    assert prompts["train_1_a_1"] == "58 years old male: Lung adenocarcinoma."
    assert prompts["train_2_a_1"] == "patient"
    assert prompts["valid_1_a_1"] == "53 years old female: Lung adenocarcinoma."
    with pytest.raises(NotEnoughPatients, match=r"asks for 4 training patients .*; 3 are there"):
        split(read_index(real_ct), DataConfig(num_train_patients=4, num_val_patients=0, num_test_patients=1))
