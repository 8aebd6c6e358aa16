"""CT-RATE's tables and folders: which volumes there are, whose they are, and which patients are trained and tested on.

Version 2 (`train_fixed`, `valid_fixed`) holds HU and true geometry, version 1 (`train`, `valid`) raw values under blank
headers, to be read with the metadata table. CT-RATE names its valid split "valid" in folders and volume names,
"validation" in its tables.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from trace_lightning import artifacts
from trace_lightning.anatomy.grid import Grid
from trace_lightning.anatomy.state import REFUSALS, Version
from trace_lightning.artifacts import Volume, case_id_of
from trace_lightning.config import DataConfig
from trace_lightning.data import acquisition, reports
from trace_lightning.data.acquisition import Acquisition
from trace_lightning.data.examine import examine
from trace_lightning.errors import NotEnoughPatients, UserError

SplitName = Literal["train", "valid"]
Wanted = Literal["auto", "v1", "v2"]
TABLE_PREFIX: dict[SplitName, str] = {"train": "train", "valid": "validation"}
METADATA_COLUMNS = ("VolumeName", "PatientSex", "PatientAge", "NumberofSlices")
REPORT_COLUMNS = ("VolumeName", "Impressions_EN")
FINDINGS_COLUMN = "Findings_EN"  # needed by `data.prompt: findings` and `both` only
CASE_ID = re.compile(r"(?P<patient>(?P<split>train|valid)_(?P<number>\d+))_(?P<scan>[a-z]+)_(?P<reconstruction>\d+)")


@dataclass(frozen=True)
class Scan:
    """One volume: a reconstruction of a scan of a patient.

    Attributes:
        case_id: `VolumeName` without extension, as train_1_a_2.
        patient: as train_1.
        split: "train" or "valid".
        path: where the volume lies, or would lie: partial downloads are common.
        age_years: whole years, None if unknown.
        sex: "male", "female" or None.
        impression: the report's impression as written, None if there is no report.
        findings: the report's findings as written, None if there are none or no report.
        num_slices: as listed in the metadata, None if blank.
        version: of the file at `path`.
        acquisition: rescaling and geometry as listed in the metadata.
    """

    case_id: str
    patient: str
    split: SplitName
    path: Path
    age_years: int | None
    sex: str | None
    impression: str | None
    findings: str | None = None
    num_slices: int | None = None
    version: Version = "v2"
    acquisition: Acquisition = field(default_factory=Acquisition)

    def prompt(self, parts: str, length_mm: float | None = None) -> str:
        """Return the report as a prompt; `parts` as in `data.prompt`, `length_mm` if the prompt is to say it."""
        texts = [getattr(self, part) for part in reports.PARTS[parts]]
        return reports.prompt(self.age_years, self.sex, texts, length_mm)


@dataclass(frozen=True)
class Exclusion:
    """A listed volume that is not used, and why; `code` as in `state.REFUSALS`."""

    case_id: str
    reason: str
    code: str = ""


@dataclass(frozen=True)
class Index:
    """All volumes that a tree lists, less those excluded."""

    root: Path
    scans: tuple[Scan, ...]
    excluded: tuple[Exclusion, ...]


@dataclass(frozen=True)
class Split:
    """The volumes of an experiment. No patient is in two of train, val and test."""

    train: tuple[Scan, ...]
    val: tuple[Scan, ...]
    test: tuple[Scan, ...]
    excluded: tuple[Exclusion, ...]

    @property
    def scans(self) -> tuple[Scan, ...]:
        """Return all volumes, training first."""
        return self.train + self.val + self.test


def volume_path(root: Path, case_id: str, version: Version = "v2") -> Path:
    """Return where a volume lies: dataset/train_fixed/train_1/train_1_a/train_1_a_2.nii.gz (v1: dataset/train/...)."""
    match = _parse(case_id)
    folder = Path(root) / "dataset" / (match["split"] if version == "v1" else f"{match['split']}_fixed")
    return folder / match["patient"] / f"{match['patient']}_{match['scan']}" / f"{case_id}.nii.gz"


def read_scan(scan: Scan, repair: bool = False) -> Volume:
    """Read a volume in HU, canonical orientation.

    Raises:
        UserError: the file is absent or damaged, or the evidence speaks against using it (names the reason).
    """
    decision, volume = examine(scan.path, scan.version, scan.acquisition, repair)
    if volume is None:
        mend = "; data.repair=true mends it" if decision.mendable else ""
        raise UserError(
            f"{scan.path}: refused ({decision.reason}): {decision.text}; right would be: "
            f"{REFUSALS[decision.reason]}{mend}"
        )
    return volume


def read_grid(scan: Scan) -> Grid:
    """Return a volume's grid from its header, or of v1 from the table, without decoding the volume.

    Raises:
        UserError: the file is absent, or its header damaged.
    """
    return artifacts.read_grid(scan.path, scan.acquisition.affine() if scan.version == "v1" else None)


def find_scan(index: Index, case_id: str) -> Scan:
    """Return the scan of a name.

    Raises:
        UserError: it is not listed, or excluded.
    """
    for scan in index.scans:
        if scan.case_id == case_id:
            return scan
    raise UserError(f"{index.root}: {case_id} is not among the volumes that are used")


def read_index(root: Path, version: Wanted = "auto") -> Index:
    """Read metadata, reports and exclusion lists of both splits.

    Volumes are those of the metadata tables; a volume without a report has no impression. Listed volumes need not be
    on disk (see `split`).

    Args:
        root: folder that holds `dataset/`.
        version: of the volume files; "auto" takes v1 where v2 is not on disk.

    Raises:
        UserError: a file or a column is missing, or a volume is listed twice.
    """
    root = Path(root)
    if not (root / "dataset").is_dir():
        raise UserError(
            f"{root}: no CT-RATE tree here; data.root is the folder that holds dataset/metadata, "
            "dataset/radiology_text_reports and dataset/train_fixed (null: the built-in phantom)"
        )
    scans: list[Scan] = []
    excluded: list[Exclusion] = []
    for split_name in TABLE_PREFIX:
        has_v1 = (root / "dataset" / split_name).is_dir()
        table = metadata_path(root, split_name)
        metadata = _read_table(table, METADATA_COLUMNS, acquisition.COLUMNS)
        texts = _read_table(reports_path(root, split_name), REPORT_COLUMNS, (FINDINGS_COLUMN,))
        no_chest = _read_list(no_chest_path(root, split_name))
        for case_id, row in metadata.items():
            match = _parse(case_id, f"{table}: ")
            if match["split"] != split_name:
                raise UserError(f"{table}: lists {case_id}, which is not of the {split_name} split")
            if case_id in no_chest:
                reason = f"not a chest: listed in {no_chest_path(root, split_name).name}"
                excluded.append(Exclusion(case_id, reason, "listed_no_chest"))
                continue
            found = _version(root, case_id, version, has_v1)
            try:
                scan = Scan(
                    case_id=case_id,
                    patient=match["patient"],
                    split=split_name,
                    path=volume_path(root, case_id, found),
                    age_years=reports.age_years(row["PatientAge"]),
                    sex=reports.sex(row["PatientSex"]),
                    impression=texts[case_id]["Impressions_EN"] if case_id in texts else None,
                    findings=texts[case_id][FINDINGS_COLUMN] or None if case_id in texts else None,
                    num_slices=_whole(row["NumberofSlices"], "NumberofSlices"),
                    version=found,
                    acquisition=Acquisition.from_row(row),
                )
            except ValueError as error:
                excluded.append(Exclusion(case_id, f"{error} in {table.name}", "bad_metadata"))
                continue
            scans.append(scan)
    return Index(root, tuple(sorted(scans, key=_order)), tuple(excluded))


def split(index: Index, data: DataConfig) -> Split:
    """Choose the volumes of an experiment, which have to be on disk.

    Raises:
        NotEnoughPatients: more patients are asked for than there are.
        UserError: as `choose`, or a chosen volume is not on disk.
    """
    chosen = choose(index, data)
    _need_files(index.root, chosen.scans)
    return chosen


def choose(index: Index, data: DataConfig) -> Split:
    """Choose the volumes of an experiment from the tables alone, whether or not they are on disk.

    Train and val come from CT-RATE's train split, test from its valid split. All listed patients are put into an order
    that `split_seed` fixes, and those without a usable volume left out: whoever is excluded later on leaves the others
    where they are. The first `num_train_patients` are the pool, of which a row trains on the first
    ceil(train_fraction x num_train_patients), so that smaller sets lie in larger ones; the last are for validation.

    Raises:
        NotEnoughPatients: more patients are asked for than there are.
        UserError: a split is empty, or `data.prompt` needs findings and no report has any.
    """
    usable, too_short = _long_enough(index.scans, data.min_slices)
    excluded = index.excluded + too_short
    train_patients = _shuffled_patients(usable, excluded, "train", data.split_seed)
    test_patients = _shuffled_patients(usable, excluded, "valid", data.split_seed)
    for split_name, patients in (("train", train_patients), ("valid", test_patients)):
        if not patients:
            raise UserError(
                f"{metadata_path(index.root, split_name)}: the {split_name} split is empty, no usable volume is listed "
                f"({sum(e.case_id.startswith(split_name) for e in excluded)} excluded)"
            )
        if "findings" in reports.PARTS[data.prompt] and not any(s.findings for s in usable if s.split == split_name):
            raise UserError(
                f"{reports_path(index.root, split_name)}: no volume has findings (column {FINDINGS_COLUMN}), which "
                f"data.prompt={data.prompt} needs; set data.prompt=impression"
            )

    # Rounded first: 0.07 x 100 is 7.000000000000001 in floating point.
    num_train = math.ceil(round(data.train_fraction * data.num_train_patients, 6))
    _need(num_train, len(train_patients), "training patients (data.num_train_patients x data.train_fraction)")
    others = len(train_patients) - num_train
    _need(data.num_val_patients, others, "validation patients besides those of training (data.num_val_patients)")
    _need(data.num_test_patients, len(test_patients), "test patients (data.num_test_patients)")

    return Split(
        train=_scans_of(usable, train_patients[:num_train], data.reconstructions),
        val=_scans_of(usable, train_patients[len(train_patients) - data.num_val_patients :], data.reconstructions),
        test=_scans_of(usable, test_patients[: data.num_test_patients], data.reconstructions),
        excluded=excluded,
    )


def metadata_path(root: Path, split_name: SplitName) -> Path:
    """Return the table that lists the volumes of a split."""
    return Path(root) / "dataset" / "metadata" / f"{TABLE_PREFIX[split_name]}_metadata.csv"


def reports_path(root: Path, split_name: SplitName) -> Path:
    """Return the table with the reports of a split."""
    return Path(root) / "dataset" / "radiology_text_reports" / f"{TABLE_PREFIX[split_name]}_reports.csv"


def no_chest_path(root: Path, split_name: SplitName) -> Path:
    """Return the list of a split's volumes that show no chest; those listed there are never used."""
    return Path(root) / "dataset" / "metadata" / f"no_chest_{split_name}.txt"


def _version(root: Path, case_id: str, wanted: Wanted, has_v1: bool) -> Version:
    if wanted != "auto":
        return wanted
    only_v1 = has_v1 and not volume_path(root, case_id).is_file() and volume_path(root, case_id, "v1").is_file()
    return "v1" if only_v1 else "v2"


def _parse(case_id: str, where: str = "") -> re.Match[str]:
    match = CASE_ID.fullmatch(case_id)
    if match is None:
        raise UserError(f"{where}{case_id!r} is not a CT-RATE volume name, as train_1_a_2")
    return match


def _order(scan: Scan) -> tuple:
    match = _parse(scan.case_id)
    return match["split"], int(match["number"]), len(match["scan"]), match["scan"], int(match["reconstruction"])


def _read_table(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """Return case id -> the wanted columns of its row; "" where an optional column is absent."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; it is part of CT-RATE's tree")
    try:
        return _rows_of(path, columns, optional)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV table in UTF-8 ({error})") from None


def _rows_of(path: Path, columns: Sequence[str], optional: Sequence[str]) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise UserError(
                f"{path}: column {', '.join(missing)} is missing; it has {', '.join(reader.fieldnames or ())}"
            )
        rows: dict[str, dict[str, str]] = {}
        for row in reader:
            case_id = case_id_of(row["VolumeName"])
            if case_id in rows:
                raise UserError(f"{path}: {case_id} is listed twice")
            rows[case_id] = {name: row.get(name) or "" for name in (*columns, *optional)}
    return rows


def _read_list(path: Path) -> set[str]:
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; CT-RATE lists there the scans that show no chest (may be an empty file)"
        )
    return {case_id_of(line.strip()) for line in path.read_text().splitlines() if line.strip()}


def _whole(value: str, name: str) -> int | None:
    if not value.strip():
        return None
    number = float(value)
    if not number.is_integer():
        raise ValueError(f"{name} {value!r} is not a whole number")
    return int(number)


def _long_enough(scans: Iterable[Scan], min_slices: int) -> tuple[list[Scan], tuple[Exclusion, ...]]:
    kept, dropped = [], []
    for scan in scans:
        if scan.num_slices is not None and scan.num_slices < min_slices:
            dropped.append(
                Exclusion(
                    scan.case_id, f"{scan.num_slices} slices, below data.min_slices={min_slices}", "too_few_slices"
                )
            )
        else:
            kept.append(scan)
    return kept, tuple(dropped)


def _shuffled_patients(
    usable: Iterable[Scan], excluded: Iterable[Exclusion], split_name: SplitName, seed: int
) -> list[str]:
    """Return the patients with a usable volume, in the order into which `seed` puts all that are listed."""
    patients = {scan.patient for scan in usable if scan.split == split_name}
    names = (_parse(exclusion.case_id) for exclusion in excluded)
    listed = patients | {name["patient"] for name in names if name["split"] == split_name}
    in_table = sorted(listed, key=lambda patient: int(patient.split("_")[1]))
    order = np.random.default_rng([seed, split_name == "valid"]).permutation(len(in_table))
    return [in_table[i] for i in order if in_table[i] in patients]


def _scans_of(scans: Iterable[Scan], patients: Sequence[str], reconstructions: str) -> tuple[Scan, ...]:
    of_patient: dict[str, list[Scan]] = {patient: [] for patient in patients}
    for scan in scans:
        if scan.patient in of_patient:
            of_patient[scan.patient].append(scan)
    last = 1 if reconstructions == "first" else None
    return tuple(scan for of_one in of_patient.values() for scan in of_one[:last])


def _need(wanted: int, there: int, what: str) -> None:
    if wanted > there:
        raise NotEnoughPatients(f"asks for {wanted} {what}; {there} are there")


def _need_files(root: Path, scans: Iterable[Scan]) -> None:
    absent = [scan for scan in scans if not scan.path.is_file()]
    if absent:
        more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        raise UserError(
            f"{absent[0].case_id}{more} is listed in {metadata_path(root, absent[0].split)} but not found at "
            f"{absent[0].path}; download it, or list in the tables what is there"
        )
