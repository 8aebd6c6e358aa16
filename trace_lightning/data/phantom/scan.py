"""One patient in the scanner: position, grid, kernel, and the rows of the tables."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trace_lightning.anatomy.grid import Grid
from trace_lightning.config import PhantomConfig
from trace_lightning.data.phantom.anatomy import Anatomy
from trace_lightning.data.phantom.findings import Finding, draw_findings
from trace_lightning.data.phantom.patient import Patient, draw_patient, stream_key
from trace_lightning.data.phantom.render import axes_mm, render
from trace_lightning.data.phantom.reports import write_report

HEIGHT_MM = (250.0, 330.0)
WITHOUT_AGE = WITHOUT_SEX = 0.03  # share of patients
METADATA_HEADER = (
    "VolumeName,Manufacturer,SeriesDescription,ManufacturerModelName,PatientSex,PatientAge,ReconstructionDiameter,"
    "DistanceSourceToDetector,DistanceSourceToPatient,GantryDetectorTilt,TableHeight,RotationDirection,ExposureTime,"
    "XRayTubeCurrent,Exposure,FilterType,GeneratorPower,FocalSpots,ConvolutionKernel,PatientPosition,RevolutionTime,"
    "SingleCollimationWidth,TotalCollimationWidth,TableSpeed,TableFeedPerRotation,SpiralPitchFactor,"
    "DataCollectionCenterPatient,ReconstructionTargetCenterPatient,ExposureModulationType,CTDIvol,"
    "ImagePositionPatient,ImageOrientationPatient,SliceLocation,SamplesPerPixel,PhotometricInterpretation,Rows,"
    "Columns,XYSpacing,RescaleIntercept,RescaleSlope,RescaleType,NumberofSlices,ZSpacing,StudyDate"
)
METADATA_COLUMNS = METADATA_HEADER.split(",")


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

    def _key(self, name: str) -> tuple[int, ...]:
        return stream_key(self.config.seed, self.split, self.number, name)

    def stream(self, name: str) -> np.random.Generator:
        """Return one of the patient's random streams."""
        return np.random.default_rng(self._key(name))

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
        return render(self.anatomy, self.grid, self.acquisition["kernel"], self._key("texture"))

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
