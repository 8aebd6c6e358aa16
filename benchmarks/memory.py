"""Anonymous memory of a process that has read every training sample of a number of volumes, and of its loader's worker.

Mapped files are the page cache's and can be given back at any time; anonymous memory cannot, and must not grow with
the number of volumes. Run as a program it measures itself, so that nothing that came before counts (Linux only).

    python benchmarks/memory.py CACHE --volumes 10 --of 100
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from trace_lightning.config import Experiment
from trace_lightning.data import cache
from trace_lightning.data.datamodule import CTRateDataModule
from trace_lightning.data.text import Embedding, Embeddings, write_embedding

TOKENS = (77, 768)  # of ViT-L/14
SMALL = {"size": 32, "spacing_z_mm": [12.0]}  # of the phantom: about 22 slices a volume


def small_volumes(cache_dir: Path, volumes: int, of: int) -> Experiment:
    """Return an experiment on the first `volumes` patients of a phantom of `of`."""
    experiment = Experiment(name="memory")
    data, phantom = experiment.data, experiment.data.phantom
    phantom.num_train_patients, phantom.num_valid_patients = of, 1
    phantom.size, phantom.spacing_z_mm = SMALL["size"], SMALL["spacing_z_mm"]
    data.num_train_patients, data.num_val_patients, data.num_test_patients = volumes, 0, 1
    data.size, data.mask_source, data.flow_source, data.num_workers = SMALL["size"], "phantom", "phantom", 1
    experiment.train.max_steps, experiment.train.epochs, experiment.train.batch_size = None, 1, 8
    experiment.run.cache_dir = str(cache_dir)
    return experiment


def anonymous_bytes(cache_dir: Path, volumes: int, of: int) -> int:
    """Prepare volumes, read each of their pairs in a process of its own, and return that one's anonymous memory."""
    experiment = small_volumes(cache_dir, volumes, of)
    cache.prepare(experiment, lambda done, total, note="": None)
    command = [sys.executable, __file__, str(cache_dir), "--volumes", str(volumes), "--of", str(of)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def random_embeddings(folder: Path, prompts: list[str]) -> Embeddings:
    """Write random embeddings where a text tower's would lie: their values cost the loader nothing."""
    paths = {prompt: folder / f"embedding{number}.safetensors" for number, prompt in enumerate(prompts)}
    for path in paths.values():
        tokens = np.random.default_rng(0).normal(size=TOKENS).astype(np.float32)
        write_embedding(path, Embedding(tokens, tokens[0], num_tokens=len(tokens), context_length=len(tokens)))
    return Embeddings(paths)


def _read_everything(experiment: Experiment) -> int:
    """Return the bytes of this process and of the worker, once every pair was read."""
    text = random_embeddings(Path(experiment.run.cache_dir), cache.open_prepared(experiment).prompts)
    module = CTRateDataModule(experiment, text)
    module.setup("fit")
    batches = iter(module.train_dataloader())
    for _ in range(module.num_steps - 1):
        next(batches)
    (worker,) = multiprocessing.active_children()
    next(batches)
    return _anonymous_bytes_of("self") + _anonymous_bytes_of(str(worker.pid))


def _anonymous_bytes_of(process: str) -> int:
    status = Path("/proc", process, "status").read_text()
    return int(re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)[1]) * 1024


def main() -> None:
    """Measure this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--volumes", type=int, required=True)
    parser.add_argument("--of", type=int, required=True)
    options = parser.parse_args()
    print(_read_everything(small_volumes(options.cache, options.volumes, options.of)))


if __name__ == "__main__":
    main()
