"""What a fault does to the worker that meets it. All of it can be pickled."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path


def send(number: int, to_group: bool, task: object) -> None:
    """Send a signal to the command, or to all of its processes."""
    os.killpg(os.getpgid(0), number) if to_group else os.kill(os.getppid(), number)


def fill_disk(root: Path, task: object) -> None:
    """Leave no byte on the disk that a project is on."""
    with (root / "filler").open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


def forbid_writing(cache: Path, task) -> None:
    """Make the folder that a stage writes to read-only; root heeds no modes, but a mount."""
    folder = cache if task.name == "prepare" else task.folder
    folder.mkdir(exist_ok=True)
    if os.geteuid() != 0:
        folder.chmod(0o555)
        return
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)


def flag(path: Path, task: object) -> None:
    """Say that the stage is at work."""
    path.touch()


def shake_clock(task: object) -> None:
    """Let the clock jump to and fro by hours, differently at each look."""
    seconds, offset_s = time.time, [7200.0]

    def jumping() -> float:
        offset_s[0] *= -1.5 if abs(offset_s[0]) < 1e6 else 1e-3
        return seconds() + offset_s[0]

    time.time = jumping
    time.time_ns = lambda: int(jumping() * 1e9)


def lack_memory(of_device: bool, task: object) -> None:
    """Fail as an allocation does."""
    import torch

    if of_device:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    raise MemoryError("Unable to allocate 20.0 GiB for an array")


def change_code(name: str) -> None:
    """Let a file of code look as if it had been edited."""
    from experiments import stamps

    digest_of = stamps.code_digest
    stamps.code_digest = lambda path: "0" * 16 if str(path).endswith(name) else digest_of(path)


def nan_loss() -> None:
    """Make the loss NaN at step 6."""
    from trace_lightning.module import TraceModule

    objective = TraceModule.objective

    def poisoned(self, *arguments):
        loss, x_t = objective(self, *arguments)
        return (loss * float("nan") if self.training and self.global_step == 6 else loss), x_t

    TraceModule.objective = poisoned


def nan_volume() -> None:
    """Make what the network samples NaN."""
    from trace_lightning import generation

    to_hu = generation.unit_to_hu
    generation.unit_to_hu = lambda image, data: to_hu(image * float("nan"), data)


SIGNALS = {
    "kill -9": (signal.SIGKILL, True, -9),
    "SIGTERM": (signal.SIGTERM, False, 143),
    "SIGUSR1": (signal.SIGUSR1, False, 138),
    "SIGINT": (signal.SIGINT, True, 130),
}
