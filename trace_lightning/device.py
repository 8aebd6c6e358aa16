"""Which device the work runs on, and how much of its memory was used."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator, Mapping

import torch

from trace_lightning.errors import UserError


def pick_device(name: str) -> str:
    """Return cpu or cuda for `auto`.

    Raises:
        UserError: cuda asked for and not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device=cuda: no CUDA device is available here; use run.device=cpu or auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new peak on a CUDA device; on a CPU the peak is the process's and cannot be reset portably."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak of allocated memory on a CUDA device, or of this process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextlib.contextmanager
def within_memory(device: torch.device, what: str, keys: Mapping[str, object]) -> Iterator[None]:
    """Turn a lack of the device's memory into a message.

    Args:
        device: where the work runs.
        what: runs, for the message.
        keys: the keys to lower, with their values now; those that are None say nothing.

    Raises:
        UserError: with what is free, and the keys.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        free = ""
        if device.type == "cuda":
            left, total = torch.cuda.mem_get_info(device)
            held = torch.cuda.max_memory_allocated(device)
            free = f"; {held / 1e9:.1f} GB were taken, {left / 1e9:.1f} of {total / 1e9:.1f} GB are free"
        lower = "".join(f"lower {key} (now {value}), " for key, value in keys.items() if value is not None)
        reason = str(error).splitlines()[0] if str(error) else "no more can be had"
        raise UserError(
            f"{what}: out of memory on {device}: {reason}{free}; {lower}free the device, or set run.device=cpu"
        ) from None
