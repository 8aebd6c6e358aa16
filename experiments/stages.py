"""The work itself, done in a worker: prepare, reference, train, generate, evaluate. Each goes on from what it finds."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments import panels, stamps
from experiments.methods import method_of, resolve
from experiments.predict import Volumes, make_all
from experiments.progress import Further, ProgressFile
from experiments.tasks import Task, depends, evaluation_settings, evaluation_weights, is_intact
from trace_lightning.anatomy.grid import resample
from trace_lightning.anatomy.labels import BACKGROUND
from trace_lightning.artifacts import (
    case_id_of,
    digest,
    file_digest,
    provenance_path,
    read_json,
    read_volume,
    write_json,
    write_labels,
    write_volume,
)
from trace_lightning.config import Experiment
from trace_lightning.device import pick_device
from trace_lightning.errors import UserError
from trace_lightning.protocol import WEIGHTS, Case, Progress
from trace_lightning.ranks import is_first, silent

PACKAGES = (
    "trace-lightning",
    "torch",
    "lightning",
    "diffusers",
    "open-clip-torch",
    "monai",
    "nibabel",
    "numpy",
    "scipy",
)


def execute(task: Task) -> bool:
    """Do a task unless its stamp says that it is done; return whether there was anything to do.

    Where `srun` started several processes, those after the first take part in training and leave the rest to the first.

    Raises:
        UserError: it was done or begun with something else.
        NotEnoughPatients: it asks for more patients than there are.
    """
    needed = depends(task)
    if stamps.check(task.folder, task.name, needed, task.stage) == "done" and is_intact(task):
        return False
    if not is_first():
        if task.name == "train":
            resolve(method_of(task.experiment).train)(task.experiment, task.folder, silent)
        return True
    print(f"== {time.strftime('%Y-%m-%d %H:%M:%S')} {task.name} for {', '.join(task.rows)}", flush=True)
    stamps.begin(task.folder, task.name, needed)
    started = time.monotonic()
    produced = WORK[task.name](task, ProgressFile(task))
    stamps.finish(task.folder, task.name, needed, produced, time.monotonic() - started)
    panels.publish(task)
    return True


def prepare(task: Task, progress: Progress) -> dict[str, Any]:
    """Fill the cache that trainings and references read."""
    from trace_lightning.data import cache
    from trace_lightning.data.footprint import need_space

    to_write = sum(cache.files_to_write(task.experiment).values())
    print(f"   {need_space(cache.volumes_folder(task.experiment), to_write, 'preparing')}", flush=True)
    prepared = cache.prepare(task.experiment, progress)
    split = prepared.split
    return {
        "train": [scan.case_id for scan in split.train],
        "val": [scan.case_id for scan in split.val],
        "test": [scan.case_id for scan in split.test],
        "excluded": {exclusion.case_id: exclusion.reason for exclusion in split.excluded},
    }


def reference(task: Task, progress: Progress) -> dict[str, Any]:
    """Write the real volumes of the test split; their masks on the model's grid, and on the volumes' own."""
    from trace_lightning.data import cache

    test = cache.test_cases(task.experiment)
    for done, case in enumerate(test, start=1):
        name, volume = f"{case.case_id}.nii.gz", cache.reference_volume(task.experiment, case.case_id)
        own_labels = resample(case.labels, case.grid, volume.grid, order=0, fill=BACKGROUND)
        write_labels(task.folder / "masks" / name, case.labels, case.grid)
        write_labels(task.folder / "own_masks" / name, own_labels, volume.grid)
        origin = {"experiment": "ground_truth", "case_id": case.case_id, "profile": task.experiment.profile}
        origin["prompt"] = case.prompt  # what generated volumes are compared with, whether they were given it or not
        write_volume(task.folder / "volumes" / name, volume, origin)
        progress(done, len(test), case.case_id)
    return {kind: _digests(task.folder / kind) for kind in ("volumes", "masks", "own_masks")}


def train(task: Task, progress: Progress) -> dict[str, Any]:
    """Train the method in a folder that rows share."""
    resolve(method_of(task.experiment).train)(task.experiment, task.folder, progress)
    write_json(task.folder / "env.json", environment())
    return {"checkpoint": file_digest(task.folder / WEIGHTS)}


def generate(task: Task, progress: Progress) -> dict[str, Any]:
    """Write the volumes of all test cases; those that are there, made in the same way, are kept."""
    from trace_lightning.data import cache

    experiment, method = task.experiment, method_of(task.experiment)
    training = next(need.folder for need in task.needs if need.name == "train")
    reference_to = {"folder": os.path.relpath(training, task.folder / "train"), "digest": training.name}
    write_json(task.folder / "train" / "training.json", reference_to)
    made_by = provenance(experiment, training, digest(depends(task)))
    todo, kept, total = [], 0, 0
    for case in cache.test_cases(experiment):
        total += case.grid.shape[0]
        path = task.folder / "volumes" / f"{case.case_id}.nii.gz"
        if _is_kept(path, made_by["depends_digest"]):
            kept += case.grid.shape[0]
        else:
            path.unlink(missing_ok=True)
            todo.append(only(case, method.inputs(experiment)))
    if todo:
        seeds = [case_seed(experiment.seed, case.case_id) for case in todo]
        progress(kept, total)
        volumes = Volumes(experiment, training, task.folder / "volumes", made_by)
        make_all(volumes, todo, seeds, Further(progress, kept, total))
    write_json(task.folder / "env.json", environment())
    return {"volumes": _digests(task.folder / "volumes")}


def evaluate(task: Task, progress: Progress) -> dict[str, Any]:
    """Score the volumes of a row against the real ones; the real ones against themselves."""
    from evaluation.measure import Resources
    from evaluation.score import score

    real = next(need.folder for need in task.needs if need.name == "reference")
    scores = task.folder / "scores"
    masks = real / ("own_masks" if real == task.folder else "masks")  # on the grid of the volumes that are scored
    experiment, weights = task.experiment, evaluation_weights(task.experiment)
    found = score(
        task.folder / "volumes",
        real / "volumes",
        scores,
        masks,
        settings=evaluation_settings(experiment),
        metrics=experiment.evaluate.metrics,
        resources=Resources(device=pick_device(experiment.run.device)),
        cache_dir=real / "known",  # all rows share what is known of the real volumes
        progress=progress,
    )
    if found["failed"]:
        raise UserError("; ".join(found["failed"].values()))
    return {"summary": file_digest(scores / "summary.json"), "weights": weights}


WORK: dict[str, Callable[[Task, Progress], dict[str, Any]]] = {
    "prepare": prepare,
    "reference": reference,
    "train": train,
    "generate": generate,
    "evaluate": evaluate,
}


def only(case: Case, inputs: tuple[str, ...]) -> Case:
    """Return a case with nothing but what a method reads at test time."""
    return replace(
        case, labels=case.labels if "mask" in inputs else None, prompt=case.prompt if "text" in inputs else ""
    )


def case_seed(seed: int, case_id: str) -> int:
    """Return the seed of a volume: from the run's seed and the case alone, whatever else is generated."""
    return int(digest([seed, case_id]), 16) % 2**63


def provenance(experiment: Experiment, training: Path, depends_digest: str) -> dict[str, Any]:
    """Return what is the same for all volumes of a row; kept beside each of them."""
    inputs, record = method_of(experiment).inputs(experiment), read_json(training / "training.json")
    return {
        "experiment": experiment.name,
        "method": experiment.method,
        "title": experiment.title,
        "notes": [*experiment.notes, cost_note(experiment)],
        "profile": experiment.profile,
        "seed": experiment.seed,
        "inputs": list(inputs),
        "text": resolve(method_of(experiment).text)(experiment) if "text" in inputs else "no text",
        "sample": method_of(experiment).generation_keys(experiment),
        "training": training.name,
        "train_peak_memory_bytes": record.get("peak_memory_bytes"),
        "checkpoint_digest": file_digest(training / WEIGHTS),
        "depends_digest": depends_digest,
        "packages": packages(),
    }


def cost_note(experiment: Experiment) -> str:
    """Return how slices/s and memory were measured; printed under the table."""
    where = gpu_name() or "a CPU that other rows may share (memory: the whole process)"
    abreast = experiment.sample.volumes_abreast
    return f"Cost: on {where}, up to {abreast} volume(s) abreast; the paper's figures are for one volume on a GPU."


def environment() -> dict[str, Any]:
    """Return what a result was made with: code, packages, machine."""
    return {
        "git": git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "gpu": gpu_name(),
        "packages": packages(),
    }


def processor() -> str:
    """Return which processor this is: each rounds matrix products in its own way, and a training carries that on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        lines = []  # not Linux
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" not in told:
        return platform.processor() or platform.machine()
    return f"{told['model name']}, family {told.get('cpu family')}, model {told.get('model')}"


def git_state() -> dict[str, Any] | None:
    """Return the commit and whether files differ from it; None outside a git checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(stamps.ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def gpu_name() -> str | None:
    """Return the name of the CUDA device, if the method loaded torch and there is one."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


def packages() -> dict[str, str]:
    """Return the versions of the packages that matter to results."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def _is_kept(path: Path, depends_digest: str) -> bool:
    """Tell whether a volume is there, whole, and made in the same way."""
    if not path.is_file():
        return False
    try:
        read_volume(path)
        return read_json(provenance_path(path)).get("depends_digest") == depends_digest
    except UserError as error:
        print(f"   made again: {error}", flush=True)
        return False


def _digests(folder: Path) -> dict[str, str]:
    return {case_id_of(path): file_digest(path) for path in sorted(folder.glob("*.nii.gz"))}
