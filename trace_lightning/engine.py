"""How the trained network is run: precision, memory layout, compilation, and how many samples at once fit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from trace_lightning.config import SampleConfig
from trace_lightning.errors import UserError
from trace_lightning.models.conditioners import Conditions, filled_up
from trace_lightning.stopwatch import best_seconds

Denoise = Callable[[Tensor, Tensor, Conditions], Tensor]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHARE_OF_FREE = 0.8  # of a device's free memory that batches may fill
LARGEST_BATCH = 64  # beyond it nothing gets faster
LARGEST_BATCH_ON_CPU = 12
BYTES_ON_CPU = 8_000_000  # of a batch's first level: more leaves the caches, and its memory is mapped anew at each call
MATRIX = {"cuda": 8192, "cpu": 1024}  # side of the products that a device's speed is measured on


def tuned(denoiser: nn.Module, sample: SampleConfig, device: torch.device) -> Denoise:
    """Return the network as `sample` wants it run; predictions are float32 and belong to the caller.

    A compiled network is compiled for one shape: a batch smaller than the largest so far is filled up to it.

    Args:
        denoiser: the trained network, on its device, in evaluation mode.
        sample: `precision`, `channels_last`, `compile`.
        device: of the network.

    Raises:
        UserError: 16-bit floats on a device that has none.
    """
    dtype = DTYPES[sample.precision]
    if dtype == torch.float16 and device.type == "cpu":
        raise UserError("sample.precision=float16 is for GPUs; on a CPU use float32 or bfloat16")
    network = denoiser.to(memory_format=torch.channels_last) if sample.channels_last else denoiser
    compiled = sample.compile != "off"
    if compiled:
        network = torch.compile(network, mode=sample.compile, dynamic=False)
    in_full = _in_full_precision if dtype == torch.float32 else nullcontext
    batch = 0

    def denoise(x_t: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        nonlocal batch
        count = len(x_t)
        batch = max(batch, count)
        if compiled and count < batch:
            x_t, timesteps = filled_up(x_t, batch), filled_up(timesteps, batch)
            conditions = conditions.filled_up(batch)
        if sample.channels_last:
            x_t = x_t.contiguous(memory_format=torch.channels_last)
        with in_full(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            prediction = network(x_t, timesteps, conditions)[:count]
        return prediction.to(torch.float32, copy=True)  # a CUDA graph writes its next output to the same place

    return denoise


def _in_full_precision() -> AbstractContextManager:
    """Keep CUDA from rounding the convolutions of float32 to ten bits (TF32), as it does if not told."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(cudnn.enabled, cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False)


def fitting_batch(run: Callable[[int], object], first_level_bytes: int, device: torch.device, what: str) -> int:
    """Return how many samples go through the network at once.

    On a GPU the largest power of two up to 64 that its free memory holds. On a CPU memory is not what limits: a small
    network is fastest with 12 samples a call, a large one with a single sample (docs/decisions.md).

    Args:
        run: runs the network on a batch of so many samples.
        first_level_bytes: what the activations of one sample take at the network's first level, in float32.
        device: where it runs.
        what: named in the message.

    Raises:
        UserError: not even one sample fits; with the numbers.
    """
    if device.type != "cuda":
        return min(max(BYTES_ON_CPU // first_level_bytes, 1), LARGEST_BATCH_ON_CPU)
    _peak_bytes(run, 1, device)  # libraries take what they keep
    one, free = _peak_bytes(run, 1, device), free_bytes(device)
    if one is None:
        raise UserError(
            f"{what}: not one sample fits: {free / 1e9:.1f} GB of "
            f"{torch.cuda.get_device_properties(device).total_memory / 1e9:.1f} GB are free. Free the device, or set "
            "sample.precision=bfloat16 or run.device=cpu"
        )
    if (two := _peak_bytes(run, 2, device)) is None:
        return 1
    fits = 1 + int((SHARE_OF_FREE * free - one) // max(two - one, 1))
    return 2 ** (min(max(fits, 1), LARGEST_BATCH).bit_length() - 1)


def free_bytes(device: torch.device) -> int:
    """Return what this process may still allocate on a CUDA device, all of it or the share that torch is capped to."""
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    free_of_device = free + torch.cuda.memory_reserved(device) - allocated
    share = torch.cuda.get_per_process_memory_fraction(device.index)  # takes no device without an index
    return min(free_of_device, int(share * total) - allocated)


def _peak_bytes(run: Callable[[int], object], count: int, device: torch.device) -> int | None:
    """Return what a run of so many samples takes; None if it does not fit."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        run(count)
    except torch.cuda.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated(device) - before


def flops(run: Callable[[], object]) -> int:
    """Return the floating-point operations of `run` (a multiplication with addition counts two)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def matmul_flops_per_second(device: torch.device, precision: str) -> float:
    """Return the speed of square matrix products, measured: the ceiling that a network is held against."""
    side = MATRIX[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=DTYPES[precision]) for _ in range(2))
    a @ b
    return 2 * side**3 / best_seconds(lambda: a @ b, device, repeats=5)
