"""A small CT-RATE tree, and experiments of the fake method over it, for the tests of the pipeline."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from trace_lightning.anatomy.grid import Grid
from trace_lightning.artifacts import Volume, read_json, write_volume

SCRIPT = Path(__file__).with_name("fake_project.py")
IN_JOBS, ROOT = Path(__file__).with_name("in_jobs"), Path(__file__).parents[2]
SHAPE, SPACING_MM = (10, 32, 32), (25.0, 11.0, 11.0)
METADATA = "VolumeName,PatientSex,PatientAge,NumberofSlices\n"
REPORTS = "VolumeName,Impressions_EN\n"

BASE = """
data: {num_train_patients: 4, size: 32, mask_source: threshold, flow_source: dis, flow_stride: 4, num_workers: 0}
model: {flow: false, block_channels: [8, 8], norm_groups: 8, attention_levels: [1]}
text: {architecture: tiny, pretrained: seeded}
sample: {num_inference_steps: 4}
evaluate: {bootstrap_samples: 50}
"""
TINY = """
data: {num_val_patients: 1, num_test_patients: 2}
train: {max_steps: 12}
run: {device: cpu, jobs: 1, threads: 1}
"""
EXPERIMENTS = {
    "full": "",
    "independent": "sample: {sampler: independent}\n",
    "half": "data: {train_fraction: 0.5}\n",
    "blind": "model: {anatomical_guidance: false}\nsample: {sampler: independent}\n",
    "broken": "train: {weight_decay: 0.5}\n",
    "greedy": "data: {num_train_patients: 40}\n",
}
COLUMNS = "columns: [dice, slices_per_second]\ncompanions: [evaluations_per_slice, skill_lung]\n"


def write_tree(root: Path, num_train: int = 5, num_valid: int = 2) -> Path:
    """Write `num_train` + `num_valid` patients with one small volume each."""
    tables = root / "dataset" / "metadata", root / "dataset" / "radiology_text_reports"
    for folder in tables:
        folder.mkdir(parents=True)
    for split, table, number in (("train", "train", num_train), ("valid", "validation", num_valid)):
        (tables[0] / f"no_chest_{split}.txt").write_text("")
        metadata, reports = METADATA, REPORTS
        for patient in range(1, number + 1):
            case_id = f"{split}_{patient}_a_1"
            metadata += f"{case_id}.nii.gz,M,0{40 + patient}Y,{SHAPE[0]}\n"
            reports += f"{case_id}.nii.gz,No finding.\n"
            path = root / "dataset" / f"{split}_fixed" / f"{split}_{patient}" / f"{split}_{patient}_a"
            write_volume(path / f"{case_id}.nii.gz", chest(patient + 100 * (split == "valid")))
        (tables[0] / f"{table}_metadata.csv").write_text(metadata)
        (tables[1] / f"{table}_reports.csv").write_text(reports)
    return root


def chest(seed: int) -> Volume:
    """Return a body with two lungs and a spine, a little different for each seed."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    width = rng.uniform(0.8, 0.95)
    hu = np.full(SHAPE, -1000.0)
    hu[(x / width) ** 2 + (y / 0.7) ** 2 < 1] = 40
    for side in (-1, 1):
        hu[((x - side * 0.4) / 0.28) ** 2 + (y / 0.4) ** 2 + (z / rng.uniform(0.8, 1.2)) ** 2 < 1] = -850
    hu[x**2 + ((y - 0.5) / 0.9) ** 2 < 0.015] = 500
    affine = np.diag([-SPACING_MM[2], -SPACING_MM[1], SPACING_MM[0], 1.0])
    return Volume((hu + rng.normal(0, 10, SHAPE)).astype(np.float32), Grid(SHAPE, affine))


def until(condition: Callable[[], object], seconds: float = 300) -> None:
    """Wait until a condition holds; long, for a busy machine is no failure."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class Project:
    """A folder of experiments, the tree they read, and the command line over both."""

    def __init__(self, root: Path, tree: Path):
        self.root, self.tree = root, tree
        self.variables: dict[str, str] = {}
        self.profile = root / "runs" / "tiny"
        (root / "profiles").mkdir(parents=True)
        (root / "base.yaml").write_text(BASE)
        (root / "profiles" / "tiny.yaml").write_text(f"{TINY}")
        for name, keys in EXPERIMENTS.items():
            (root / f"{name}.yaml").write_text(f"name: {name}\nmethod: fake\n{keys}")

    def table(self, *names: str) -> Path:
        """Write a table of the real volumes and some rows."""
        rows = ["{label: GT, source: ground_truth}", *(f"{{label: {name}, experiment: {name}}}" for name in names)]
        path = self.root / "table.yaml"
        path.write_text("name: table\ntitle: A table\n" + COLUMNS + "rows: [" + ", ".join(rows) + "]\n")
        return path

    def command(self, *arguments: str | Path) -> list[str]:
        """Return the command line."""
        places = [
            f"run.runs_dir={self.root / 'runs'}",
            f"run.cache_dir={self.root / 'cache'}",
            f"data.root={self.tree}",
        ]
        return [sys.executable, str(SCRIPT), *map(str, arguments), "--profile", "tiny", *places]

    def environment(self, pause_s: float = 0) -> dict[str, str]:
        """Return variables by which the jobs of a submission know the fake method too."""
        path = os.pathsep.join(filter(None, [str(IN_JOBS), str(ROOT), os.environ.get("PYTHONPATH")]))
        return os.environ | {"FAKE_PAUSE_S": str(pause_s), "PYTHONPATH": path} | self.variables

    def run(self, *arguments: str | Path, pause_s: float = 0) -> subprocess.CompletedProcess:
        """Run it to its end."""
        environment = self.environment(pause_s) | {"COLUMNS": "200"}
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, env=environment, timeout=600)

    def start(self, *arguments: str | Path, pause_s: float) -> subprocess.Popen:
        """Start it in a process group of its own."""
        environment = self.environment(pause_s)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(self.command(*arguments), env=environment, start_new_session=True, **pipes)

    def has_reached(self, task: str, done: int) -> bool:
        """Tell whether a task of some folder has reported `done` units and is not at its end."""
        for path in self.profile.rglob("progress.json"):
            report = read_json(path)
            if report["task"] == task and done <= report["done"] < report["total"]:
                return True
        return False

    def trainings(self) -> list[Path]:
        """Return the folders of the trainings."""
        return sorted((self.profile / "trainings").glob("*"))

    def steps(self) -> list[list[int]]:
        """Return the steps that each training made, in the order in which it made them."""
        return [[int(line) for line in (folder / "steps.log").read_text().split()] for folder in self.trainings()]

    def files(self) -> dict[str, bytes]:
        """Return the results: volumes, weights and scores, by path."""
        kinds = ("*/seed*/volumes/*.nii.gz", "trainings/*/model.safetensors", "*/seed*/scores/summary.json")
        return {str(p.relative_to(self.profile)): p.read_bytes() for kind in kinds for p in self.profile.glob(kind)}
