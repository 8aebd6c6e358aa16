"""Processes that train one network together, and which part of a batch is whose.

A batch and all random numbers are those of one process: each process draws the whole, and takes its part. Where Slurm's
`srun` or `torchrun` has started the processes they find each other by themselves; elsewhere they are started here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_lightning.errors import Stopped, UserError, stop_on_signals

if TYPE_CHECKING:
    import torch

PATIENCE_S = 60


@dataclass(frozen=True)
class Part:
    """The part of a batch that the process `rank` of `world` works on: equal parts, in the order of the batch."""

    rank: int = 0
    world: int = 1

    def of(self, whole: Any) -> Any:
        """Return the part of what has the whole batch along its first axis, a tensor or a list."""
        size = len(whole) // self.world
        return whole[self.rank * size : (self.rank + 1) * size]

    def draw(self, random: Callable, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        """Return the part of random numbers that are drawn for the whole batch.

        Args:
            random: as `torch.rand`.
            shape: of the part, the batch first.
            generator: in the same state in all processes.
        """
        whole = (shape[0] * self.world, *shape[1:])
        return self.of(random(whole, generator=generator, device=generator.device))


WHOLE = Part()


def part_of(trainer: Any) -> Part:
    """Return the part of a Lightning trainer's process; all of it where there is no trainer."""
    return WHOLE if trainer is None else Part(trainer.global_rank, trainer.world_size)


def is_first() -> bool:
    """Tell whether this process is the one that writes, of those that `srun`, `torchrun` or `together` started."""
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", os.environ.get("SLURM_PROCID", "0")))
    return int(rank) == 0


def silent(done: int, total: int, note: str = "") -> None:
    """Report no progress: the first process does."""


@contextlib.contextmanager
def together(number: int, function: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Let `number` processes work while the block runs: this one, and others that call `function`.

    Nothing is started where the processes are there already.

    Args:
        number: of processes on this machine.
        function: what the others do; it and its arguments can be pickled.
        arguments: of the function.

    Raises:
        UserError: what was wrong in another process, if this one fails because of it; or Slurm has started too few.
    """
    from lightning.fabric.plugins.environments.lightning import find_free_network_port
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    of_slurm = SLURMEnvironment.detect()
    if of_slurm and int(os.environ["SLURM_NTASKS"]) % number:
        raise UserError(
            f"run.devices={number} under Slurm needs as many tasks on each node (srun --ntasks-per-node={number}); "
            f"this job has {os.environ['SLURM_NTASKS']} in all"
        )
    if number == 1 or of_slurm or "LOCAL_RANK" in os.environ:
        yield
        return

    context = multiprocessing.get_context("spawn")
    messages = context.SimpleQueue()
    others = [context.Process(target=_other, args=(messages, function, arguments)) for _ in range(1, number)]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
    before = dict(os.environ)
    os.environ.update(meeting)
    try:
        for rank, other in enumerate(others, start=1):
            os.environ["LOCAL_RANK"] = str(rank)  # inherited
            other.start()
        os.environ["LOCAL_RANK"] = "0"
        yield
    except RuntimeError:  # of torch.distributed: another process is gone
        _end(others)
        if not messages.empty():
            raise UserError(messages.get()) from None
        raise
    finally:
        _end(others)
        for name in (*meeting, "LOCAL_RANK"):
            os.environ.pop(name, None)
        os.environ.update({name: before[name] for name in meeting if name in before})


def _other(messages: Any, function: Callable[..., None], arguments: tuple) -> None:
    """Work beside the first process, and end with it."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides
    stop_on_signals()
    try:
        function(*arguments)
    except UserError as error:
        messages.put(str(error))
    except Stopped:
        pass  # the first process says so


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _end(processes: list) -> None:
    for process in processes:
        process.join(PATIENCE_S)
        if process.is_alive():
            process.kill()
            process.join()
