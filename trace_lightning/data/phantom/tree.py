"""Write the phantom's patients as a CT-RATE tree (v2): volumes, masks, motion, metadata, reports and labels."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from trace_lightning.anatomy.grid import Grid
from trace_lightning.artifacts import Volume, read_json, sweep_temporary, write_json, write_labels, write_text, write_volume
from trace_lightning.config import PhantomConfig
from trace_lightning.data.phantom.anatomy import Anatomy
from trace_lightning.data.phantom.findings import LABELS, Finding, draw_findings
from trace_lightning.data.phantom.motion import motion_of, motion_path
from trace_lightning.data.phantom.patient import SPLITS, Patient, draw_patient, stream
from trace_lightning.data.phantom.render import axes_mm, render
from trace_lightning.data.phantom.reports import label_row, write_report
from trace_lightning.errors import UserError
from trace_lightning.protocol import Progress

FORMAT = 1  # raised whenever the same config gives other volumes
HEIGHT_MM = (250.0, 330.0)
WITHOUT_AGE = WITHOUT_SEX = 0.03  # share of patients
LONG_NAME = {"train": "train", "valid": "validation"}  # CT-RATE uses both
METADATA_COLUMNS = (
    "VolumeName,Manufacturer,SeriesDescription,ManufacturerModelName,PatientSex,PatientAge,ReconstructionDiameter,"
    "DistanceSourceToDetector,DistanceSourceToPatient,GantryDetectorTilt,TableHeight,RotationDirection,ExposureTime,"
    "XRayTubeCurrent,Exposure,FilterType,GeneratorPower,FocalSpots,ConvolutionKernel,PatientPosition,RevolutionTime,"
    "SingleCollimationWidth,TotalCollimationWidth,TableSpeed,TableFeedPerRotation,SpiralPitchFactor,"
    "DataCollectionCenterPatient,ReconstructionTargetCenterPatient,ExposureModulationType,CTDIvol,"
    "ImagePositionPatient,ImageOrientationPatient,SliceLocation,SamplesPerPixel,PhotometricInterpretation,Rows,Columns,"
    "XYSpacing,RescaleIntercept,RescaleSlope,RescaleType,NumberofSlices,ZSpacing,StudyDate"
).split(",")
REPORT_COLUMNS = ("VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN")


@dataclass(frozen=True)
class Scan:
    """One patient in the scanner: all that their files are made from.

    Attributes:
        config: of the phantom.
        split: "train" or "valid".
        number: within the split, from 1.
    """

    config: PhantomConfig
    split: str
    number: int

    @property
    def case_id(self) -> str:
        """CT-RATE's volume name without extension."""
        return f"{self.split}_{self.number}_a_1"

    def stream(self, name: str) -> np.random.Generator:
        """Return one of the patient's random streams."""
        return stream(self.config.seed, self.split, self.number, name)

    @cached_property
    def patient(self) -> Patient:
        """The patient as they would be in health."""
        return draw_patient(self.stream("body"))

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """What the patient suffers from."""
        return draw_findings(self.stream("findings"), self.patient)

    @cached_property
    def acquisition(self) -> dict:
        """Where the patient lies, how the scanner is set, and what the header leaves out."""
        rng = self.stream("scan")
        return {
            "offset_mm": tuple(rng.uniform(-25, 25, 2).tolist()),
            "above_mm": float(rng.uniform(6, 32)),
            "below_mm": float(rng.uniform(4, 45)),
            "table_mm": float(rng.uniform(-400, 400)),
            "spacing_z_mm": float(rng.choice(self.config.spacing_z_mm)),
            "kernel": "B" if rng.random() < 0.6 else "L",
            "age_known": bool(rng.random() >= WITHOUT_AGE),
            "sex_known": bool(rng.random() >= WITHOUT_SEX),
            "date": f"20{rng.integers(15, 24)}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}",
        }

    @cached_property
    def anatomy(self) -> Anatomy:
        """The patient's geometry."""
        return Anatomy(self.patient, self.findings, self.stream("placement"), self.acquisition["offset_mm"])

    @cached_property
    def grid(self) -> Grid:
        """The canonical grid of the volume, from above the lungs to below them."""
        low, high = self.anatomy.heights_mm()
        top = high + self.acquisition["above_mm"]
        height = float(np.clip(top - low + self.acquisition["below_mm"], *HEIGHT_MM))
        size, pixel, step = self.config.size, self.config.fov_mm / self.config.size, self.acquisition["spacing_z_mm"]
        slices = max(1, round(height / step))
        affine = np.diag([-pixel, -pixel, step, 1.0])
        affine[:3, 3] = pixel * (size - 1) / 2, pixel * (size - 1) / 2, top - step * (slices - 1)
        return Grid((slices, size, size), affine)

    def render(self) -> tuple[np.ndarray, np.ndarray]:
        """Return HU (D, H, W) int16 and VISTA3D ids uint8."""
        seed = (self.config.seed, SPLITS.index(self.split), self.number, 99)
        return render(self.anatomy, self.grid, self.acquisition["kernel"], seed)

    def metadata_row(self) -> dict[str, object]:
        """Return the row of the metadata CSV."""
        depth, rows, columns = self.grid.shape
        pixel, step = self.grid.spacing_mm[2], self.grid.spacing_mm[0]
        position = [round(float(axis[0]), 4) for axis in axes_mm(self.grid)]
        known = {
            "VolumeName": f"{self.case_id}.nii.gz",
            "Manufacturer": "trace_lightning phantom",
            "PatientSex": self.patient.sex if self.acquisition["sex_known"] else "",
            "PatientAge": f"{self.patient.age:03d}Y" if self.acquisition["age_known"] else "",
            "ReconstructionDiameter": self.config.fov_mm,
            "ConvolutionKernel": self.acquisition["kernel"],
            "PatientPosition": "HFS",
            "ImagePositionPatient": str(position),
            "ImageOrientationPatient": "[1, 0, 0, 0, 1, 0]",
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "Rows": rows,
            "Columns": columns,
            "XYSpacing": f"[{pixel:.6f}, {pixel:.6f}]",
            "RescaleIntercept": -1024,
            "RescaleSlope": 1,
            "NumberofSlices": depth,
            "ZSpacing": round(step, 6),
            "StudyDate": self.acquisition["date"],
        }
        return {column: known.get(column, "") for column in METADATA_COLUMNS}

    def report_row(self) -> dict[str, str]:
        """Return the row of the reports CSV."""
        return {"VolumeName": f"{self.case_id}.nii.gz"} | write_report(self.findings, self.stream("report"))


def volume_path(root: Path, case_id: str) -> Path:
    """Return where a case's volume lies."""
    return Path(root) / "dataset" / _relative(case_id)


def mask_path(root: Path, case_id: str) -> Path:
    """Return where a case's exact mask (VISTA3D ids) lies."""
    return Path(root) / "dataset" / "vista3d_seg" / _relative(case_id)


def _relative(case_id: str) -> Path:
    split, number, scan, _ = case_id.split("_")
    return Path(f"{split}_fixed", f"{split}_{number}", f"{split}_{number}_{scan}", f"{case_id}.nii.gz")


def scans(config: PhantomConfig) -> Iterator[Scan]:
    """Yield the patients of a phantom, train first."""
    for split, count in (("train", config.num_train_patients), ("valid", config.num_valid_patients)):
        for number in range(1, count + 1):
            yield Scan(config, split, number)


def write_tree(root: Path, config: PhantomConfig, progress: Progress | None = None) -> None:
    """Write the phantom as a CT-RATE tree below `root`; what is there and whole is kept.

    A patient depends on seed, split, number and the grid's settings, not on how many others are written.

    Args:
        root: folder that gets `dataset/`.
        config: size of the phantom and its seed.
        progress: told after each patient.

    Raises:
        UserError: `root` holds a phantom of another config, or the config is impossible.
    """
    root = Path(root)
    stamp_path = root / "dataset" / "phantom.json"
    stamp = {"format": FORMAT, "config": asdict(config)}
    _check(config)
    if stamp_path.exists():
        found = read_json(stamp_path)
        if found == stamp:
            return
        raise UserError(f"{stamp_path}: another phantom lies here ({_difference(found, stamp)}); choose an empty folder")
    sweep_temporary(root)
    everyone = list(scans(config))
    for done, scan in enumerate(everyone):
        if progress is not None:
            progress(done, len(everyone), scan.case_id)
        _write_case(root, scan)
    _write_tables(root, everyone)
    write_json(stamp_path, stamp)
    if progress is not None:
        progress(len(everyone), len(everyone))


def _check(config: PhantomConfig) -> None:
    problems = {
        "num_train_patients": config.num_train_patients < 0,
        "num_valid_patients": config.num_valid_patients < 0,
        "seed": config.seed < 0,
        "size": config.size < 8,
        "fov_mm": config.fov_mm <= 0,
        "spacing_z_mm": not config.spacing_z_mm or min(config.spacing_z_mm) <= 0,
    }
    for key, wrong in problems.items():
        if wrong:
            raise UserError(f"data.phantom.{key}: {getattr(config, key)} is impossible")


def _difference(found: dict, wanted: dict) -> str:
    old, new = ({"format": s.get("format"), **s.get("config", {})} for s in (found, wanted))
    return ", ".join(f"{key}: {old.get(key)} there, {new[key]} asked for" for key in new if old.get(key) != new[key])


def _write_case(root: Path, scan: Scan) -> None:
    """Write a volume, its motion and its mask, the mask last: with it the case is whole."""
    if mask_path(root, scan.case_id).exists():
        return
    hu, labels = scan.render()
    write_volume(volume_path(root, scan.case_id), Volume(hu, scan.grid))
    write_json(motion_path(root, scan.case_id), motion_of(scan.anatomy.cage.frame, axes_mm(scan.grid)[2]))
    write_labels(mask_path(root, scan.case_id), labels, scan.grid)


def _write_tables(root: Path, everyone: list[Scan]) -> None:
    """Write metadata, reports, labels and the empty lists of scans that show no chest."""
    dataset = root / "dataset"
    for split, long_name in LONG_NAME.items():
        own = [scan for scan in everyone if scan.split == split]
        labels = [{"VolumeName": f"{scan.case_id}.nii.gz"} | label_row(scan.findings) for scan in own]
        _write_csv(dataset / "metadata" / f"{long_name}_metadata.csv", METADATA_COLUMNS, [s.metadata_row() for s in own])
        _write_csv(dataset / "radiology_text_reports" / f"{long_name}_reports.csv", REPORT_COLUMNS, [s.report_row() for s in own])
        _write_csv(dataset / "multi_abnormality_labels" / f"{split}_predicted_labels.csv", ("VolumeName", *LABELS), labels)
        write_text(dataset / "metadata" / f"no_chest_{split}.txt", "")


def _write_csv(path: Path, columns: tuple[str, ...] | list[str], rows: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
