"""Training pairs a second from the cache, against decoding the .nii.gz of each pair; and what many volumes cost.

    make bench-loader        (python benchmarks/loader.py [--repeats 5] [--slices 300] [--size 256])

A pair is what training reads at the paper's setting: two slices, their masks in 3 classes, optical flow (between
images, between masks, or none) and the report's 77 x 768 token embeddings, as batches of 28 of the training loader.
A decoded pair is two slices and their masks, read by nibabel from the .nii.gz of the volume and of the mask: whole, as
most loaders do, or no further than the second slice. Flow, text, resampling and batches are left out in its favour.
Repeats alternate between the rows. Processor time is that of the process and its worker; it depends less than seconds
do on what else the machine is busy with.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from memory import anonymous_bytes, random_embeddings
from rich.progress import Progress

from trace_lightning.config import Experiment
from trace_lightning.data import cache, masks
from trace_lightning.data.datamodule import CTRateDataModule
from trace_lightning.data.phantom.scan import Scan
from trace_lightning.data.preprocess import hu_to_unit
from trace_lightning.data.text import Embeddings

BATCHES, WARM_UP = 40, 6  # a repeat; those that are loaded ahead do not count
DECODED_PAIRS = 8
FINE_MM = 0.01  # measures the patient's height, whatever it is
FEW, MANY = 10, 100  # volumes


def main() -> None:
    """Build the volume, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300, help="of the volume (default 300)")
    parser.add_argument("--size", type=int, default=256, help="pixels in plane (default 256)")
    parser.add_argument("--repeats", type=int, default=5, help="default 5")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as bar:
        task = bar.add_task("phantom")
        experiment = _one_volume(Path(folder), options.size, options.slices)
        prepared = cache.prepare(experiment, lambda done, total, note="": bar.update(task, completed=done, total=total))
        (case,) = prepared.cases("train")
        text = random_embeddings(Path(folder), prepared.prompts)
        rows = {
            "loader, one worker": _loader(experiment, text, num_workers=1),
            "loader, this process": _loader(experiment, text, num_workers=0),
            "decoding .nii.gz whole": _decoder(experiment, case.case_id, whole=True),
            "  up to the slice": _decoder(experiment, case.case_id, whole=False),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
        bar.update(task, description="pairs/s", completed=0, total=options.repeats * len(rows))
        for _, (name, measure) in itertools.product(range(options.repeats), rows.items()):
            found[name].append(measure())
            bar.advance(task)
        bar.update(task, description="memory", completed=0, total=2)
        memory = {}
        for volumes in (FEW, MANY):
            memory[volumes] = anonymous_bytes(Path(folder), volumes, MANY)
            bar.advance(task)
        depth, height, width = case.image.shape
    print(f"pairs/s from {depth} slices of {height} x {width}: median (least - most) of {options.repeats}")
    medians = {}
    for name, figures in found.items():
        rates, processor = zip(*figures, strict=True)
        medians[name] = statistics.median(rates)
        print(
            f"  {name:23}{medians[name]:8.2f} ({min(rates):.2f} - {max(rates):.2f}), "
            f"{1000 * statistics.median(processor):.2f} ms of processor a pair"
        )
    loaded, _, *decoded = medians.values()
    whole, part = (loaded / rate for rate in decoded)
    print(f"  one worker is {whole:.0f} times as fast as decoding whole, {part:.0f} times as up to the slice")
    growth = (memory[MANY] - memory[FEW]) / (MANY - FEW)
    few, many = (f"{of / 1e6:.2f} MB" for of in memory.values())
    print(f"anonymous memory after all pairs of {FEW} volumes {few}, of {MANY} {many}: {growth / 1000:.1f} kB a volume")


def _one_volume(folder: Path, size: int, slices: int) -> Experiment:
    """Return the paper's setting on one phantom patient of so many slices."""
    experiment = Experiment(name="loader")
    data, phantom = experiment.data, experiment.data.phantom
    phantom.num_train_patients, phantom.num_valid_patients, phantom.size = 1, 1, size
    phantom.spacing_z_mm = [FINE_MM]
    phantom.spacing_z_mm = [Scan(phantom, "train", 1).grid.shape[0] * FINE_MM / slices]
    data.num_train_patients, data.num_val_patients, data.num_test_patients = 1, 0, 1
    data.size, data.mask_source, data.flow_source = size, "phantom", "phantom"
    experiment.train.max_steps = 10**9
    experiment.run.cache_dir = str(folder)
    return experiment


def _loader(experiment: Experiment, text: Embeddings, num_workers: int) -> Callable[[], tuple[float, float]]:
    """Return what measures (pairs/s, seconds of processor a pair) of the training loader."""
    batches = _batches(experiment, text, num_workers)
    for _ in range(WARM_UP):
        next(batches)

    def measure() -> tuple[float, float]:
        for _ in range(WARM_UP):
            next(batches)
        return _rate(lambda: next(batches), BATCHES, experiment.train.batch_size)

    return measure


def _batches(experiment: Experiment, text: Embeddings, num_workers: int) -> Iterator[dict]:
    experiment.data.num_workers = num_workers
    module = CTRateDataModule(experiment, text)
    module.setup("fit")
    return iter(module.train_dataloader())


def _decoder(experiment: Experiment, case_id: str, whole: bool) -> Callable[[], tuple[float, float]]:
    """Return what measures the same of reading pairs from the files of a CT-RATE tree."""
    scan = next(scan for scan in cache.open_prepared(experiment).split.train if scan.case_id == case_id)
    image, mask = (nib.load(path) for path in cache.source_files(scan, experiment))
    rng = np.random.default_rng(0)  # pairs differ in how much has to be decoded before them

    def read_pair() -> None:
        skip = int(rng.choice(experiment.data.skips))
        first = skip * int(rng.integers((image.shape[2] - 1) // skip))
        pair = np.s_[:, :, first : first + skip + 1 : skip]
        hu, labels = (np.asarray(of.dataobj)[pair] if whole else of.dataobj[pair] for of in (image, mask))
        hu_to_unit(np.asarray(hu, np.float32).transpose(2, 1, 0), experiment.data)
        masks.class_map(labels.transpose(2, 1, 0), experiment.model.num_mask_classes)

    return lambda: _rate(read_pair, DECODED_PAIRS, 1)


def _rate(action: Callable[[], object], times: int, pairs: int) -> tuple[float, float]:
    """Return pairs/s, and seconds of processor a pair, of so many actions of so many pairs each."""
    started, used = time.perf_counter(), _processor_seconds()
    for _ in range(times):
        action()
    return times * pairs / (time.perf_counter() - started), (_processor_seconds() - used) / (times * pairs)


def _processor_seconds() -> float:
    """Return what this process and its workers have used so far (Linux)."""
    stats = [Path(f"/proc/{worker.pid}/stat").read_text() for worker in multiprocessing.active_children()]
    ticks = [sum(map(int, stat.rpartition(")")[2].split()[11:13])) for stat in stats]  # in user and in system mode
    return time.process_time() + sum(ticks) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
