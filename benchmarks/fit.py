"""Training steps a second of a row, the share of the device's matrix products that they take, and of waiting for data.

    python -m benchmarks.fit [EXPERIMENT] [--profile P] [--steps N] [--out FILE.json] [KEY=VALUE ...]

Trains the row as `python -m experiments run` does, for so many steps, in a folder that is thrown away. The first third
of the steps does not count. A training step is taken for three evaluations (forward, and backward twice as dear).
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import lightning
import torch

from experiments.load import load
from experiments.stages import environment
from trace_lightning.artifacts import write_json
from trace_lightning.data import cache
from trace_lightning.data.datamodule import CTRateDataModule
from trace_lightning.data.text import text_dim
from trace_lightning.device import pick_device
from trace_lightning.engine import flops, matmul_flops_per_second
from trace_lightning.errors import UserError, run_command
from trace_lightning.fitting import fit
from trace_lightning.module import TraceModule
from trace_lightning.random_inputs import random_inputs
from trace_lightning.training import text_embeddings

WARM_UP = 1 / 3
PRECISIONS = {"32-true": "float32", "bf16-mixed": "bfloat16", "16-mixed": "float16"}


def main(arguments: list[str] | None = None) -> int:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", default="ours")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--profile", default="phantom")
    parser.add_argument("--steps", type=int, default=60, help="of the training (60)")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options, others = parser.parse_known_args(arguments)
    options.overrides += others
    if options.steps < 2:
        raise UserError(f"--steps {options.steps}: two or more; the first do not count")
    experiment = load(options.experiment, options.profile, options.overrides).experiment
    found = measure(experiment, options.steps)
    for name, value in found.items():
        print(f"{name:24}  {value:.4g}" if isinstance(value, float) else f"{name:24}  {value}")
    if options.out:
        keys = {"experiment": experiment.name, "profile": options.profile, "overrides": options.overrides}
        write_json(options.out, keys | found | {"environment": environment()})
    return 0


def measure(experiment, num_steps: int) -> dict[str, float | int]:
    """Train `num_steps` steps and return what they took.

    Args:
        experiment: a row of TRACE.
        num_steps: of the training.
    """
    train = replace(experiment.train, max_steps=num_steps, warmup_steps=1, checkpoint_every_steps=num_steps + 1)
    experiment = replace(experiment, train=replace(train, val_every_steps=num_steps, log_every_steps=1))
    device = torch.device(pick_device(experiment.run.device))
    cache.prepare(experiment, lambda done, total, note="": None)
    datamodule = CTRateDataModule(experiment, text_embeddings(experiment))
    datamodule.setup("fit")
    watch, width = _Watch(), text_dim(experiment.text)
    with tempfile.TemporaryDirectory() as folder:
        fit(
            experiment,
            lambda: TraceModule(experiment, width, num_steps),
            datamodule,
            Path(folder) / "training",
            {},
            lambda done, total, note="": None,
            callbacks=[watch],
        )
    counted = slice(int(len(watch.speeds) * WARM_UP), None)
    seconds = [1 / speed for speed in watch.speeds[counted]]
    steps_per_second = len(seconds) / sum(seconds)
    waiting = sum(share * one for share, one in zip(watch.waits[counted], seconds, strict=True)) / sum(seconds)
    network = TraceModule(experiment, width, num_steps).denoiser.to(device)
    inputs = random_inputs(experiment, 1, device)
    with torch.inference_mode():
        of_step = 3 * flops(lambda: network(*inputs)) * train.batch_size
    precision = PRECISIONS[train.precision]
    ceiling = matmul_flops_per_second(device, precision)
    return {
        "batch_size": train.batch_size,
        "precision": precision,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "steps_per_second": steps_per_second,
        "pairs_per_second": steps_per_second * train.batch_size,
        "share_of_peak": of_step * steps_per_second / ceiling,
        "peak_flops_per_second": ceiling,
        "waiting_share": waiting,
        "peak_memory_bytes": watch.peak_bytes,
    }


class _Watch(lightning.Callback):
    """Keeps what `Throughput` logs."""

    def __init__(self):
        self.speeds: list[float] = []
        self.waits: list[float] = []
        self.peak_bytes = 0

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        """Read the last step's figures."""
        logged = trainer.callback_metrics
        if "train/steps_per_second" in logged:
            self.speeds.append(float(logged["train/steps_per_second"]))
            self.waits.append(float(logged["train/waiting_share"]))

    def on_train_end(self, trainer, module) -> None:
        """Read the peak of the device's memory."""
        if module.device.type == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated(module.device)


if __name__ == "__main__":
    run_command(main)
