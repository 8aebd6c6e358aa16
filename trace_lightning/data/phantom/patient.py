"""Patients drawn from a seed: age, sex, size, and many independent shape parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

STREAMS = ("body", "findings", "scan", "report", "placement", "texture")
SPLITS = ("train", "valid")


def stream_key(seed: int, split: str, number: int, name: str) -> tuple[int, ...]:
    """Return the seed of one of a patient's random streams; other names and patients give independent ones.

    Args:
        seed: seed of the phantom.
        split: "train" or "valid".
        number: the patient's number within the split.
        name: one of `STREAMS`.
    """
    return seed, SPLITS.index(split), number, STREAMS.index(name)


@dataclass(frozen=True)
class Patient:
    """Size and shape of one body. Lengths in mm, levels in vertebrae counted from the top of T1 downwards."""

    sex: Literal["M", "F"]
    age: int  # years
    height_cm: float
    half_width_mm: float  # of the rib cage, mid-rib, at its widest
    half_depth_mm: float  # likewise, front to back
    fat_mm: float  # under the skin
    muscle_mm: float  # over the ribs
    shoulder_mm: float  # half width of the body at the shoulders
    spine_length_mm: float  # T1 to T12
    kyphosis: float  # 1 is common
    scoliosis_mm: float
    scoliosis_phase: float
    vertebra_scale: float
    cage_top: float  # exponent on the cage's taper towards the apex
    cage_waist: float  # how much the cage narrows below its widest part
    cage_square: float  # share of a rounded square in the cage's cross-section
    cage_groove: float  # how deep the spine indents the cage
    rib_scale: float
    rib_drop: float  # slope of the ribs, 1 is common
    rib_phase_mm: float  # rib heads against their vertebrae
    sternum_level: float  # of its upper end
    sternum_length_mm: float
    apex_level: tuple[float, float]  # right, left
    dome_level: float  # top of the right diaphragm
    dome_left_mm: float  # how much lower the left one stands
    recess_mm: float  # depth of the costophrenic recess behind, below the dome
    dome_at: tuple[float, float]  # (u, v) of the dome's top in body coordinates
    mediastinum_mm: float  # half width at the great vessels
    fissure_tilt: float
    fissure_level: float  # of the oblique fissures, at the back
    horizontal_fissure_level: float
    heart_scale: float
    heart_shift_mm: tuple[float, float, float]
    heart_azimuth: float  # radians from front towards left
    heart_elevation: float  # radians, apex downwards
    aorta_mm: float  # radius of the ascending aorta
    aorta_unfolding_mm: float  # how far the arch reaches to the left and up
    trachea_mm: float  # radius
    carina_level: float
    liver_left: float  # u that the left lobe reaches
    liver_length_mm: float
    spleen_scale: float
    stomach_scale: float
    stomach_gas: float  # share of the depth
    kidney_drop_mm: float
    scapula_level: float
    scapula_turn_mm: float  # towards the side
    breast_mm: float  # 0 in men
    lung_offset_hu: float
    liver_offset_hu: float
    bone_density: float


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw a patient. Parameters vary independently, except where bodies would fall apart."""
    u = rng.uniform
    sex: Literal["M", "F"] = "M" if rng.random() < 0.55 else "F"
    age = int(np.clip(rng.normal(54, 17), 18, 90))
    height_cm = float(np.clip(rng.normal(175 if sex == "M" else 162, 8), 145, 200))
    half_width_mm = float(np.clip(rng.normal(138 if sex == "M" else 127, 12), 105, 160))
    muscle_mm = u(9, 17) + (3 if sex == "M" else 0)
    # Big cages carry less fat, so that most bodies fit into the field of view.
    fat_mm = float(np.clip(rng.gamma(4.0, 4.5), 5, 182 - half_width_mm - muscle_mm))
    return Patient(
        sex=sex,
        age=age,
        height_cm=height_cm,
        half_width_mm=half_width_mm,
        half_depth_mm=float(np.clip(half_width_mm * u(0.62, 0.84), 74, 118)),
        fat_mm=max(fat_mm, 5.0),
        muscle_mm=muscle_mm,
        shoulder_mm=half_width_mm + muscle_mm + u(18, 48),
        spine_length_mm=265 * height_cm / 170 * u(0.92, 1.06),
        kyphosis=u(0.5, 1.2) + max(0, age - 55) / 60 * u(0.3, 1.2),
        scoliosis_mm=rng.normal(0, 5),
        scoliosis_phase=u(0, 2 * np.pi),
        vertebra_scale=u(0.92, 1.12) * (1.03 if sex == "M" else 0.95),
        cage_top=u(0.75, 1.35),
        cage_waist=u(0.0, 0.14),
        cage_square=u(0.0, 0.35),
        cage_groove=u(0.10, 0.24),
        rib_scale=u(0.92, 1.12),
        rib_drop=u(0.8, 1.25),
        rib_phase_mm=u(-8, 8),
        sternum_level=u(1.7, 2.9),
        sternum_length_mm=(150 if sex == "M" else 132) * u(0.9, 1.12),
        apex_level=(u(0.0, 1.0), u(0.0, 1.0)),
        dome_level=u(7.6, 10.2),
        dome_left_mm=u(-2, 26),
        recess_mm=u(62, 112),
        dome_at=(u(0.44, 0.56), u(-0.3, 0.05)),
        mediastinum_mm=u(27, 38),
        fissure_tilt=u(0.75, 1.2),
        fissure_level=u(2.8, 4.2),
        horizontal_fissure_level=u(5.6, 7.0),
        heart_scale=u(0.88, 1.08),
        heart_shift_mm=(u(-8, 10), u(-5, 8), u(-10, 10)),
        heart_azimuth=u(0.65, 1.1),
        heart_elevation=u(0.25, 0.75),
        aorta_mm=14.0 + 0.04 * (age - 50) + u(-1.5, 1.5),
        aorta_unfolding_mm=u(0, 8) + max(0, age - 55) * 0.2,
        trachea_mm=(9.3 if sex == "M" else 7.8) * u(0.9, 1.12),
        carina_level=u(4.0, 5.1),
        liver_left=u(0.1, 0.5),
        liver_length_mm=u(125, 185),
        spleen_scale=u(0.8, 1.25),
        stomach_scale=u(0.8, 1.25),
        stomach_gas=u(0.1, 0.4),
        kidney_drop_mm=u(-12, 25),
        scapula_level=u(-0.4, 1.0),
        scapula_turn_mm=u(-10, 45),
        breast_mm=u(25, 55) if sex == "F" else 0.0,
        lung_offset_hu=u(-28, 40),
        liver_offset_hu=-u(10, 45) if rng.random() < 0.25 else u(-5, 7),
        bone_density=u(0.88, 1.12) - max(0, age - 50) * 0.004,
    )
