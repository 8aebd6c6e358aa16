"""Memory that brickwork takes for one volume: peak on a GPU, under a cap if asked; resident on a CPU.

    python -m benchmarks.sampling_memory [--slices 300] [--size 256] [--limit-gb 6] [--profile gpu_256] [--steps 2]

The network of `ours` at random weights, a few steps of the whole volume's state: memory does not depend on how many.
`--calls 2` ends after two calls of the network, in minutes on a CPU; what is left, the solver's step, takes less.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from experiments.load import load
from experiments.stages import environment
from trace_lightning.anatomy.grid import Grid
from trace_lightning.anatomy.labels import BONE, LUNG
from trace_lightning.artifacts import write_json
from trace_lightning.data.text import text_dim
from trace_lightning.device import peak_memory_bytes, pick_device, reset_peak_memory
from trace_lightning.errors import run_command
from trace_lightning.generation import TraceGenerator
from trace_lightning.module import build_denoiser
from trace_lightning.protocol import Case


def main(arguments: list[str] | None = None) -> int:
    """Sample and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--calls", type=int, help="of the network, after which the sampling ends (all)")
    parser.add_argument("--limit-gb", type=float, help="of a CUDA device's memory: torch refuses more")
    parser.add_argument("--profile", default="gpu_256")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options, overrides = parser.parse_known_args(arguments)
    keys = ["sample.sampler=brickwork", "sample.solver=dpmpp_2m", f"sample.num_inference_steps={options.steps}"]
    experiment = load("ours", options.profile, [*keys, *overrides]).experiment
    experiment = replace(experiment, data=replace(experiment.data, size=options.size))
    device = torch.device(pick_device(experiment.run.device))
    if options.limit_gb is not None and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(options.limit_gb * 1e9 / total, device)
    denoiser = build_denoiser(experiment, text_dim(experiment.text)).to(device).eval()
    loaded = peak_memory_bytes(device)
    generator = TraceGenerator(experiment, denoiser, device)
    reset_peak_memory(device)
    generator.denoise = _limited(generator.denoise, options.calls)
    started = time.perf_counter()
    with contextlib.suppress(_Enough):
        list(generator.generate([_case(options.slices, options.size)], [0], lambda done, total, note="": None))
    found = {
        "device": "cuda" if device.type == "cuda" else "cpu (resident memory of the process)",
        "limit_gb": options.limit_gb,
        "slices": options.slices,
        "size": options.size,
        "parameters": generator.num_parameters,
        "tile_batch": generator.settings.tile_batch,
        "calls": options.calls,
        "loaded_bytes": loaded,
        "peak_memory_bytes": peak_memory_bytes(device),
        "seconds": time.perf_counter() - started,
    }
    for name, value in found.items():
        print(f"{name:18}  {value}")
    if options.out:
        write_json(options.out, found | {"environment": environment()})
    return 0


class _Enough(Exception):
    """The network was called often enough."""


def _limited(denoise: Callable, calls: int | None) -> Callable:
    """Return `denoise`, which ends the sampling when it is called once more than `calls` times."""
    done = itertools.count()

    def call(*inputs):
        if next(done) == calls:
            raise _Enough
        return denoise(*inputs)

    return call


def _case(num_slices: int, size: int) -> Case:
    labels = np.zeros((num_slices, size, size), np.uint8)
    labels[:, size // 4 : size // 2] = LUNG
    labels[:, size // 2 : size // 2 + 8] = BONE
    grid = Grid(labels.shape, np.diag([-1.4, -1.4, 1.0, 1.0]))
    return Case("volume", "58 years old male: Consolidation in the right lower lobe.", grid, labels)


if __name__ == "__main__":
    run_command(main)
