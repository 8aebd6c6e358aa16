"""Write the phantom's patients as a CT-RATE tree (v2): volumes, masks, motion, metadata, reports and labels."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from trace_lightning.artifacts import (
    Volume,
    read_json,
    sweep_temporary,
    write_json,
    write_labels,
    write_text,
    write_volume,
)
from trace_lightning.config import PhantomConfig
from trace_lightning.data.phantom.findings import LABELS
from trace_lightning.data.phantom.motion import motion_of, motion_path
from trace_lightning.data.phantom.render import axes_mm
from trace_lightning.data.phantom.reports import label_row
from trace_lightning.data.phantom.scan import METADATA_COLUMNS, Scan
from trace_lightning.errors import UserError
from trace_lightning.protocol import Progress

FORMAT = 1  # raised whenever the same config gives other volumes
LONG_NAME = {"train": "train", "valid": "validation"}  # CT-RATE uses both
REPORT_COLUMNS = ("VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN")


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
        progress: counts patients.

    Raises:
        UserError: `root` holds a phantom of another config, or the config is impossible.
    """
    root = Path(root)
    finished, begun = root / "dataset" / "phantom.json", root / "dataset" / "phantom_unfinished.json"
    stamp = {"format": FORMAT, "config": asdict(config)}
    _check(config)
    for path in (finished, begun):
        if path.exists() and read_json(path) != stamp:
            different = _difference(read_json(path), stamp)
            raise UserError(f"{path}: another phantom lies here ({different}); choose or make an empty folder")
    if finished.exists():
        return
    write_json(begun, stamp)
    sweep_temporary(root)
    everyone = list(scans(config))
    for done, scan in enumerate(everyone):
        if progress is not None:
            progress(done, len(everyone), scan.case_id)
        _write_case(root, scan)
    _write_tables(root, everyone)
    begun.replace(finished)
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
        _write_csv(
            dataset / "metadata" / f"{long_name}_metadata.csv",
            METADATA_COLUMNS,
            [s.metadata_row() for s in own],
        )
        _write_csv(
            dataset / "radiology_text_reports" / f"{long_name}_reports.csv",
            REPORT_COLUMNS,
            [s.report_row() for s in own],
        )
        _write_csv(
            dataset / "multi_abnormality_labels" / f"{split}_predicted_labels.csv", ("VolumeName", *LABELS), labels
        )
        write_text(dataset / "metadata" / f"no_chest_{split}.txt", "")


def _write_csv(path: Path, columns: tuple[str, ...] | list[str], rows: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
