"""The tree that the phantom writes: CT-RATE's layout, columns and formats; resumable; independent of its size."""

import csv
import json
from ast import literal_eval
from pathlib import Path

import numpy as np
import pytest

from trace_lightning.artifacts import file_digest, read_labels, read_volume
from trace_lightning.config import PhantomConfig
from trace_lightning.data.phantom import mask_path, motion_path, pair_flow, tree, write_tree
from trace_lightning.data.phantom.findings import LABELS
from trace_lightning.data.phantom.scan import Scan
from trace_lightning.errors import UserError

CONFIG = PhantomConfig(num_train_patients=3, num_valid_patients=2, size=32, spacing_z_mm=[12.0])
HEADER = (
    "VolumeName,Manufacturer,SeriesDescription,ManufacturerModelName,PatientSex,PatientAge,ReconstructionDiameter,"
    "DistanceSourceToDetector,DistanceSourceToPatient,GantryDetectorTilt,TableHeight,RotationDirection,ExposureTime,"
    "XRayTubeCurrent,Exposure,FilterType,GeneratorPower,FocalSpots,ConvolutionKernel,PatientPosition,RevolutionTime,"
    "SingleCollimationWidth,TotalCollimationWidth,TableSpeed,TableFeedPerRotation,SpiralPitchFactor,"
    "DataCollectionCenterPatient,ReconstructionTargetCenterPatient,ExposureModulationType,CTDIvol,"
    "ImagePositionPatient,ImageOrientationPatient,SliceLocation,SamplesPerPixel,PhotometricInterpretation,Rows,"
    "Columns,XYSpacing,RescaleIntercept,RescaleSlope,RescaleType,NumberofSlices,ZSpacing,StudyDate"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("phantom")
    write_tree(root, CONFIG)
    return root


def rows(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def files(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): file_digest(p) for p in sorted(root.rglob("*")) if p.is_file()}


def test_layout(root):
    cases = ["train_1_a_1", "train_2_a_1", "train_3_a_1", "valid_1_a_1", "valid_2_a_1"]
    expected = {f"dataset/phantom_motion/{case}.json" for case in cases}
    for case in cases:
        split, number, *_ = case.split("_")
        inside = f"{split}_fixed/{split}_{number}/{split}_{number}_a/{case}.nii.gz"
        expected |= {f"dataset/{inside}", f"dataset/vista3d_seg/{inside}"}
    expected |= {f"dataset/metadata/{name}_metadata.csv" for name in ("train", "validation")}
    expected |= {f"dataset/radiology_text_reports/{name}_reports.csv" for name in ("train", "validation")}
    expected |= {f"dataset/multi_abnormality_labels/{name}_predicted_labels.csv" for name in ("train", "valid")}
    expected |= {f"dataset/metadata/no_chest_{name}.txt" for name in ("train", "valid")}
    assert set(files(root)) == expected | {"dataset/phantom.json"}


def test_columns(root):
    dataset = root / "dataset"
    for name in ("train", "validation"):
        assert (dataset / "metadata" / f"{name}_metadata.csv").read_text().splitlines()[0] == HEADER
        header = (dataset / "radiology_text_reports" / f"{name}_reports.csv").read_text().splitlines()[0]
        assert header == "VolumeName,ClinicalInformation_EN,Technique_EN,Findings_EN,Impressions_EN"
    for name in ("train", "valid"):
        table = rows(dataset / "multi_abnormality_labels" / f"{name}_predicted_labels.csv")
        assert list(table[0]) == ["VolumeName", *LABELS] and len(LABELS) == 18
        assert {row[label] for row in table for label in LABELS} <= {"0", "1"}
        assert (dataset / "metadata" / f"no_chest_{name}.txt").read_text() == ""


def test_metadata_describes_the_volumes(root):
    for row in rows(root / "dataset/metadata/train_metadata.csv"):
        case_id = row["VolumeName"].removesuffix(".nii.gz")
        volume = read_volume(tree.volume_path(root, case_id))
        assert volume.hu.shape == (int(row["NumberofSlices"]), int(row["Rows"]), int(row["Columns"]))
        assert float(row["ZSpacing"]) == pytest.approx(volume.grid.spacing_mm[0], abs=1e-4)
        assert literal_eval(row["XYSpacing"]) == pytest.approx(volume.grid.spacing_mm[1:], abs=1e-4)
        position = volume.grid.affine[:3, 3] * [-1, -1, 1]
        assert literal_eval(row["ImagePositionPatient"]) == pytest.approx(position, abs=1e-3)
        assert row["PatientSex"] in ("M", "F", "")
        assert row["PatientAge"] == "" or (len(row["PatientAge"]) == 4 and row["PatientAge"].endswith("Y"))
        assert row["ConvolutionKernel"] in ("B", "L")


def test_volumes_and_masks_share_their_grid(root):
    for case_id in ("train_1_a_1", "valid_2_a_1"):
        volume = read_volume(tree.volume_path(root, case_id))
        labels, grid = read_labels(mask_path(root, case_id))
        assert volume.grid.equals(grid)
        assert np.isin(labels, (28, 29, 30, 31, 32)).sum() > 500
        assert volume.hu.min() >= -1024 and volume.hu[np.isin(labels, (28, 29, 30))].mean() < -500


def test_motion_lies_beside_the_tree(root):
    motion = json.loads(motion_path(root, "train_2_a_1").read_text())
    grid = read_volume(tree.volume_path(root, "train_2_a_1")).grid
    assert len(motion["z_mm"]) == grid.shape[0]
    assert np.abs(pair_flow(motion, grid, 0, 3)).max() > 0.1


def test_reports_name_the_findings(root):
    for row, scan in zip(
        rows(root / "dataset/radiology_text_reports/train_reports.csv"), tree.scans(CONFIG), strict=False
    ):
        assert row["VolumeName"] == f"{scan.case_id}.nii.gz"
        assert all(finding.sentence in row["Findings_EN"] for finding in scan.findings)


def test_the_same_again_and_independent_of_the_number_of_patients(root, tmp_path):
    smaller = PhantomConfig(num_train_patients=2, num_valid_patients=1, size=32, spacing_z_mm=[12.0])
    write_tree(tmp_path, smaller)
    whole, part = files(root), files(tmp_path)
    volumes = [name for name in part if name.endswith((".nii.gz", "_1.json"))]
    assert len(volumes) == 3 * 3
    for name in volumes:
        if name.endswith(".json"):
            assert whole[name] == part[name]
        else:  # gzip keeps the time
            assert np.array_equal(read_volume(root / name).hu, read_volume(tmp_path / name).hu)
    for table in ("metadata/train_metadata.csv", "radiology_text_reports/train_reports.csv"):
        assert rows(tmp_path / "dataset" / table) == rows(root / "dataset" / table)[:2]


def test_resumes_what_was_interrupted(tmp_path, monkeypatch):
    config = PhantomConfig(num_train_patients=3, num_valid_patients=0, size=32, spacing_z_mm=[12.0])
    render, calls = Scan.render, []

    def killed(scan):
        calls.append(scan.case_id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return render(scan)

    monkeypatch.setattr(Scan, "render", killed)
    with pytest.raises(KeyboardInterrupt):
        write_tree(tmp_path, config)
    assert not (tmp_path / "dataset/phantom.json").exists()
    (tmp_path / "dataset" / ".tmp-1-torn.nii.gz").write_bytes(b"half")
    before = files(tmp_path)
    write_tree(tmp_path, config)
    assert calls[3:] == ["train_3_a_1"], "whole files are kept"
    after = files(tmp_path)
    assert all(after[name] == before[name] for name in before if name.endswith("1.nii.gz") and "tmp" not in name)
    assert not any(".tmp-" in name for name in after)
    write_tree(tmp_path, config)
    assert len(calls) == 4 and files(tmp_path) == after


def test_refuses_another_phantom(root, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="seed: 0 there, 5 asked for"):
        write_tree(
            root, PhantomConfig(num_train_patients=3, num_valid_patients=2, size=32, spacing_z_mm=[12.0], seed=5)
        )

    def full_disk(scan):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Scan, "render", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_tree(tmp_path, CONFIG)
    with pytest.raises(UserError, match="size: 32 there, 64 asked for"):
        write_tree(tmp_path, PhantomConfig(num_train_patients=3, num_valid_patients=2, spacing_z_mm=[12.0]))


@pytest.mark.parametrize("wrong", [{"size": 0}, {"spacing_z_mm": []}, {"spacing_z_mm": [0.0]}, {"fov_mm": -1.0}])
def test_refuses_impossible_configs(tmp_path, wrong):
    with pytest.raises(UserError, match=f"data.phantom.{next(iter(wrong))}"):
        write_tree(tmp_path, PhantomConfig(**wrong))
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_progress_reaches_the_end(tmp_path):
    seen = []
    config = PhantomConfig(num_train_patients=1, num_valid_patients=1, size=16, spacing_z_mm=[40.0])
    write_tree(tmp_path, config, lambda done, total, note="": seen.append((done, total)))
    assert seen == [(0, 2), (1, 2), (2, 2)]


def test_slice_counts_follow_from_the_patient():
    counts = [Scan(PhantomConfig(size=64, spacing_z_mm=[7.0, 8.0]), "train", k).grid.shape[0] for k in range(1, 41)]
    assert min(counts) >= 31 and max(counts) <= 48 and len(set(counts)) > 5
