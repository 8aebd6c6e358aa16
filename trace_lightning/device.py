"""Which device the work runs on, and how much of its memory was used."""

from __future__ import annotations

import resource
import sys

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
