"""Memory that brickwork takes for one volume: peak on a GPU, under a cap if asked; resident on a CPU.

    python -m benchmarks.sampling_memory [--slices 300] [--size 256] [--limit-gb 6] [--profile gpu_256] [--calls 2]

The network of `ours` at random weights over the whole volume's state. Three steps: from then on the solver remembers
all that it needs, and more steps take no more. On a CPU they take half an hour; `--calls 2` runs the network in the
last two calls only, beside the state of the third step, and lets what goes in stand for what it predicts before.
"""

from __future__ import annotations

import argparse
import itertools
import time
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
from trace_lightning.engine import Denoise
from trace_lightning.errors import UserError, run_command
from trace_lightning.generation import TraceGenerator
from trace_lightning.module import build_denoiser
from trace_lightning.protocol import Case


def main(arguments: list[str] | None = None) -> int:
    """Sample and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--calls", type=int, help="the last so many that the network itself is run in (all)")
    parser.add_argument("--limit-gb", type=float, help="of a CUDA device's memory: torch refuses more")
    parser.add_argument("--profile", default="gpu_256")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options, overrides = parser.parse_known_args(arguments)
    for name, least in (("slices", 1), ("steps", 1), ("calls", 1), ("limit_gb", 0.1)):
        if (value := getattr(options, name)) is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: {least} or more")
    keys = ["sample.sampler=brickwork", "sample.solver=dpmpp_2m", f"sample.num_inference_steps={options.steps}"]
    experiment = load("ours", options.profile, [*keys, f"data.size={options.size}", *overrides]).experiment
    device = torch.device(pick_device(experiment.run.device))
    limit_gb = options.limit_gb if device.type == "cuda" else None  # a process's memory is not torch's to limit
    if limit_gb is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(limit_gb * 1e9 / total, device.index)
    denoiser = build_denoiser(experiment, text_dim(experiment.text)).to(device).eval()
    loaded = peak_memory_bytes(device)
    generator = TraceGenerator(experiment, denoiser, device)
    reset_peak_memory(device)
    if options.calls is not None:
        calls = generator.network_calls([options.slices])
        if options.calls > calls:
            raise UserError(f"--calls {options.calls}: the network is called {calls} times")
        generator.denoise = _last(generator.denoise, calls, options.calls)
    started = time.perf_counter()
    list(generator.generate([_case(options.slices, options.size)], [0], lambda done, total, note="": None))
    found = {
        "device": "cuda" if device.type == "cuda" else "cpu (resident memory of the process)",
        "limit_gb": limit_gb,
        "slices": options.slices,
        "size": options.size,
        "parameters": generator.num_parameters,
        "tile_batch": generator.settings.tile_batch,
        "steps": options.steps,
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


def _last(denoise: Denoise, calls: int, last: int) -> Denoise:
    """Return `denoise`, which of so many calls runs the network in the last ones only."""
    done = itertools.count(1)
    return lambda x_t, *conditions: denoise(x_t, *conditions) if next(done) > calls - last else x_t.clone()


def _case(num_slices: int, size: int) -> Case:
    labels = np.zeros((num_slices, size, size), np.uint8)
    labels[:, size // 4 : size // 2] = LUNG
    labels[:, size // 2 : size // 2 + 8] = BONE
    grid = Grid(labels.shape, np.diag([-1.4, -1.4, 1.0, 1.0]))
    return Case("volume", "58 years old male: Consolidation in the right lower lobe.", grid, labels)


if __name__ == "__main__":
    run_command(main)
