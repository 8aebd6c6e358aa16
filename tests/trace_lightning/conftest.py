"""A tiny CT-RATE tree, written with nibabel and csv alone, and an experiment that fits it."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from trace_lightning.config import Experiment, TextConfig
from trace_lightning.data.cache import prepare

LPS = np.diag([-8.0, -8.0, 6.0, 1.0])
PREFIX = {"train": "train", "valid": "validation"}


def chest(depth: int = 12, size: int = 40, seed: int = 0) -> np.ndarray:
    """Return (D, H, W) HU: air, an oval body, two lungs that grow along z, a spine at the back."""
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[:depth, :size, :size]
    y, x = (y - size / 2) / size, (x - size / 2) / size
    hu = np.full((depth, size, size), -1000.0)
    hu[(y / 0.36) ** 2 + (x / 0.45) ** 2 < 1] = 40
    radius = 0.10 + 0.06 * z / depth + 0.01 * rng.random()
    for side in (-0.2, 0.2):
        hu[(y / 1.4) ** 2 + (x - side) ** 2 < radius**2] = -850
    hu[(y - 0.26) ** 2 + x**2 < 0.05**2] = 500
    return hu + rng.normal(0, 10, hu.shape)


class Tree:
    """Writes volumes, tables and exclusion lists of a CT-RATE tree."""

    def __init__(self, root: Path):
        self.root = root
        self.metadata: dict[str, dict[str, dict]] = {"train": {}, "valid": {}}
        self.reports: dict[str, dict[str, str]] = {"train": {}, "valid": {}}
        self.findings: dict[str, str] = {}
        self.no_chest: dict[str, list[str]] = {"train": [], "valid": []}

    def path(self, case_id: str) -> Path:
        split, number, letter, _ = case_id.split("_")
        patient = f"{split}_{number}"
        return self.root / "dataset" / f"{split}_fixed" / patient / f"{patient}_{letter}" / f"{case_id}.nii.gz"

    def add(self, case_id: str, hu: np.ndarray | None = None, impression: str = "Not given.", **metadata) -> None:
        """List a volume; write it if `hu` is given."""
        split = case_id.split("_")[0]
        defaults = {"PatientSex": "M", "PatientAge": "058Y", "NumberofSlices": 12 if hu is None else len(hu)}
        self.metadata[split][case_id] = defaults | metadata
        self.reports[split][case_id] = impression
        if hu is not None:
            self.write_volume(case_id, hu)

    def write_volume(self, case_id: str, hu: np.ndarray, affine: np.ndarray = LPS) -> Path:
        path = self.path(case_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.transpose(hu, (2, 1, 0)) if hu.ndim == 3 else hu
        nib.save(nib.Nifti1Image(array.astype(np.float32), affine), path)
        return path

    def write_tables(self) -> Tree:
        for split in PREFIX:
            rows = [{"VolumeName": f"{c}.nii.gz"} | row for c, row in self.metadata[split].items()]
            columns = ["VolumeName", "PatientSex", "PatientAge", "NumberofSlices"]
            self._table(self.metadata_table(split), columns, rows)
            rows = [
                {"VolumeName": f"{c}.nii.gz", "Impressions_EN": t}
                | ({"Findings_EN": self.findings.get(c, "")} if self.findings else {})
                for c, t in self.reports[split].items()
            ]
            columns = ["VolumeName", *(["Findings_EN"] if self.findings else []), "Impressions_EN"]
            self._table(self.report_table(split), columns, rows)
            lines = [f"{split}_fixed/.../{case_id}.nii.gz\n" for case_id in self.no_chest[split]]
            (self.root / "dataset" / "metadata" / f"no_chest_{split}.txt").write_text("".join(lines))
        return self

    def metadata_table(self, split: str) -> Path:
        return self.root / "dataset" / "metadata" / f"{PREFIX[split]}_metadata.csv"

    def report_table(self, split: str) -> Path:
        return self.root / "dataset" / "radiology_text_reports" / f"{PREFIX[split]}_reports.csv"

    def _table(self, path: Path, columns: list[str], rows: list[dict]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)


def small_experiment(root: Path, cache_dir: Path) -> Experiment:
    """Return an experiment on 3 training, 1 validation and 2 test patients at 32 x 32."""
    experiment = Experiment(name="tiny")
    data = experiment.data
    data.root, data.size, data.mask_source = str(root), 32, "threshold"
    data.num_train_patients, data.num_val_patients, data.num_test_patients = 3, 1, 2
    data.num_workers, data.flow_stride = 0, 4
    experiment.run.cache_dir = str(cache_dir)
    experiment.run.device = "cpu"
    experiment.train.batch_size, experiment.train.max_steps = 4, 30
    return experiment


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """An empty tree."""
    return Tree(tmp_path / "tree")


@pytest.fixture(scope="session")
def full_tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Four patients in train, two in valid; not to be changed by a test."""
    tree = Tree(tmp_path_factory.mktemp("full"))
    for n in range(1, 5):
        tree.add(f"train_{n}_a_1", chest(seed=n), impression=f"Finding {n}.")
    for n in range(1, 3):
        tree.add(f"valid_{n}_a_1", chest(seed=10 + n))
    return tree.write_tables()


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for the tests that only read what is prepared from `full_tree`."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make_experiment() -> Callable[[Path, Path], Experiment]:
    return small_experiment


@pytest.fixture
def make_chest() -> Callable[..., np.ndarray]:
    return chest


@pytest.fixture
def real_ct() -> Path:
    """The folder of real CT in CT-RATE's layout."""
    folder = Path(os.environ.get("TRACE_DATA", "")) / "ct_rate_mini"
    if "TRACE_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("set TRACE_DATA to a folder that holds ct_rate_mini")
    return folder


@pytest.fixture
def quiet() -> Callable[..., None]:
    """A progress that says nothing."""
    return lambda done, total, note="": None


@pytest.fixture
def tiny() -> Experiment:
    """Ours with a network of a few thousand weights on 16 x 16 images."""
    experiment = Experiment(name="tiny")
    experiment.data.size = 16
    experiment.data.num_workers = 0
    experiment.text = TextConfig("tiny", "seeded")
    model = experiment.model
    model.block_channels, model.attention_levels, model.layers_per_block = [8, 16], [1], 1
    model.norm_groups, model.unshuffle, model.text_context_dim, model.flow_adapter_channels = 4, 2, 16, 4
    experiment.diffusion.prediction_type = "sample"
    experiment.diffusion.beta_schedule = "squaredcos_cap_v2"
    experiment.train.max_steps = 4
    experiment.train.batch_size = 2
    experiment.train.warmup_steps = 1
    experiment.sample.num_inference_steps = 3
    experiment.sample.timestep_spacing = "trailing"
    experiment.run.device = "cpu"
    return experiment


def silent(done: int, total: int, note: str = "") -> None:
    """Report nothing."""


@pytest.fixture(scope="session")
def prepared(full_tree, tmp_path_factory) -> Experiment:
    """Ours with a tiny network on the tiny tree, prepared; 8 steps, a checkpoint after each 3."""
    experiment = Experiment(name="ours")
    data = experiment.data
    data.root, data.size, data.mask_source = str(full_tree.root), 32, "threshold"
    data.num_train_patients, data.num_val_patients, data.num_test_patients, data.num_workers = 3, 1, 2, 0
    experiment.text.architecture, experiment.text.pretrained = "tiny", "seeded"
    model = experiment.model
    model.block_channels, model.attention_levels, model.layers_per_block = [8, 16], [1], 1
    model.norm_groups, model.unshuffle, model.text_context_dim, model.flow_adapter_channels = 4, 2, 16, 4
    experiment.diffusion.prediction_type, experiment.diffusion.beta_schedule = "sample", "squaredcos_cap_v2"
    training = experiment.train
    training.max_steps, training.batch_size, training.warmup_steps, training.ema_decay = 8, 4, 2, 0.5
    training.lr, training.min_lr = 1e-3, 1e-4
    training.val_every_steps, training.checkpoint_every_steps, training.log_every_steps = 4, 3, 1
    experiment.sample.num_inference_steps, experiment.sample.timestep_spacing = 3, "trailing"
    experiment.run.cache_dir, experiment.run.device = str(tmp_path_factory.mktemp("cache")), "cpu"
    prepare(experiment, silent)
    return experiment


@pytest.fixture(scope="session")
def trained(prepared, tmp_path_factory) -> Path:
    """A finished training of `prepared`."""
    from trace_lightning.training import train

    folder = tmp_path_factory.mktemp("training")
    train(prepared, folder, silent)
    return folder
