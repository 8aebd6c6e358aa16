"""A tiny project of the real method, copied for each cell of the matrix as it is before the stage begins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
from command import Injection, Run
from project import BASE, COLUMNS, TINY

RESULTS = (
    "cache/**/*.npy",
    "runs/tiny/**/*asks/*.nii.gz",
    "runs/tiny/**/volumes/*.nii.gz",
    "runs/tiny/trainings/*/model.safetensors",
    "runs/tiny/table/table.*",
)
ROW = """
name: full
model: {paired_frames: true, anatomical_guidance: true, layers_per_block: 1, attention_heads: 2, text_context_dim: 16}
diffusion: {prediction_type: sample, beta_schedule: squaredcos_cap_v2}
train: {batch_size: 4, warmup_steps: 2, lr: 1.0e-3, min_lr: 1.0e-4, ema_decay: 0.5}
"""
EVERY = "train: {max_steps: 12, val_every_steps: 6, checkpoint_every_steps: 2, log_every_steps: 1}\n"
NOT_YET = {  # what is not there before a stage begins
    "prepare": ("runs", "cache"),
    "train": ("runs/tiny/trainings", "runs/tiny/full", "runs/tiny/table"),
    "generate": ("runs/tiny/full", "runs/tiny/table"),
    "evaluate": ("runs/tiny/full/seed0/scores", "runs/tiny/full/seed0/evaluate.json", "runs/tiny/table"),
}
DISK_MB = 48


class Scene:
    """The project in a folder, and what is done to it."""

    def __init__(self, root: Path, tree: Path):
        self.root, self.tree, self.runs = root, tree, 0

    @classmethod
    def new(cls, root: Path, tree: Path) -> Scene:
        """Write the project's files; nothing is done yet."""
        (root / "profiles").mkdir(parents=True)
        (root / "base.yaml").write_text(BASE)
        (root / "profiles" / "tiny.yaml").write_text(TINY.replace("train: {max_steps: 12}\n", EVERY))
        (root / "full.yaml").write_text(ROW)
        rows = "rows: [{label: GT, source: ground_truth}, {label: full, experiment: full}]\n"
        columns = COLUMNS.replace(", slices_per_second", ", jaccard")  # no column of time
        (root / "table.yaml").write_text(f"name: table\ntitle: A table\n{columns}{rows}")
        return cls(root, tree)

    def before(self, stage: str, root: Path) -> Scene:
        """Return a copy of this finished project as it was before a stage."""
        shutil.copytree(self.root, root, dirs_exist_ok=True)
        for name in NOT_YET[stage]:
            path = root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return Scene(root, self.tree)

    def run(self, injection: Injection | None = None, prelude: Callable[[], None] | None = None) -> Run:
        """Start the command."""
        places = {"run.runs_dir": self.root / "runs", "run.cache_dir": self.root / "cache", "data.root": self.tree}
        arguments = ["run", str(self.root / "table.yaml"), "--profile", "tiny"]
        arguments += [f"{key}={value}" for key, value in places.items()]
        self.runs += 1
        return Run(arguments, self.root.parent / f"{self.root.name}.{self.runs}.log", injection, prelude)

    def results(self) -> dict[str, bytes]:
        """Return volumes, masks, weights, prepared arrays and the table, by path."""
        paths = {path for kind in RESULTS for path in self.root.glob(kind)}
        paths = {path for path in paths if not any(part.startswith(".tmp-") for part in path.parts)}
        return {str(path.relative_to(self.root)): path.read_bytes() for path in sorted(paths)}

    def newest(self, pattern: str) -> Path:
        """Return the file below the project that was written last."""
        return max(self.root.glob(pattern), key=lambda path: path.stat().st_mtime_ns)

    def truncate(self, path: Path) -> None:
        """Cut a file in half."""
        os.truncate(path, path.stat().st_size // 2)

    def need_whole(self, finished: dict[str, bytes]) -> None:
        """Check that what has its final name is what an uninterrupted run leaves under that name, and JSON is JSON.

        A table may be printed with a row that is missing: it says so.
        """
        for name, content in self.results().items():
            assert "/table/" in name or content == finished.get(name), f"{name} is not what an uninterrupted run leaves"
        for path in self.root.rglob("[!.]*.json"):
            if not any(part.startswith(".tmp-") for part in path.parts):
                json.loads(path.read_text())

    def recover(self, finished: dict[str, bytes]) -> float:
        """Repeat the command; check that it ends as an uninterrupted run, and return its seconds."""
        run = self.run()
        assert run.end() == 0, run.output()
        found = self.results()
        assert found.keys() == finished.keys()
        assert [name for name in finished if found[name] != finished[name]] == []
        assert not list(self.root.rglob(".tmp-*"))
        assert not list(self.root.rglob("*.ckpt"))
        return run.seconds


def poison(path: Path) -> None:
    """Put a volume with NaN in the place of a NIfTI file, with its grid."""
    import nibabel as nib

    image = nib.load(path)
    voxels = image.get_fdata(dtype=np.float32)
    voxels[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(voxels, image.affine), path)


def mounted_disk(folder: Path) -> bool:
    """Make a folder a disk of its own; False where that is not allowed."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    return os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0


def unmount_below(folder: Path) -> None:
    """Undo all mounts of a folder and below, and make its folders writable."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in reversed(mounts):
        if Path(place).is_relative_to(folder):
            subprocess.run(["umount", place], check=True)
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() and not os.access(path, os.W_OK):
            path.chmod(0o755)
