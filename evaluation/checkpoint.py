"""Reads published weight files and says plainly when one is not what it should be."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from trace_lightning.errors import UserError

# Training checkpoints keep their learning rate, say, as a NumPy number, which torch by itself does not take for data.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMBERS = [
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),  # its name before NumPy 2
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32")),
]


def read(path: Path, key: str | None = None) -> Mapping[str, torch.Tensor]:
    """Read a state dict.

    Args:
        path: file of `torch.save`.
        key: entry that holds the weights, where the file has others beside them.

    Raises:
        UserError: absent, damaged, holding code, or without that entry.
    """
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        lines = [line for line in str(error).splitlines() if "Unsupported" in line or "Can only" in line]
        why = lines[0].strip() if lines else str(error).splitlines()[0]
        raise UserError(f"{path}: not a plain file of weights, and nothing in it was run ({why[:200]})") from None
    except (RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch it again") from None
    if key is not None:
        if not isinstance(found, Mapping) or key not in found:
            raise UserError(f"{path}: has no entry `{key}`, so these are not the published weights")
        found = found[key]
    return found


def fill(network: nn.Module, state: Mapping[str, torch.Tensor], path: Path, device: str) -> nn.Module:
    """Load weights strictly and make the network ready to be asked.

    Raises:
        UserError: names or shapes differ.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not the weights of {type(network).__name__}: {reason[:300]}") from None
    return network.to(device).eval().requires_grad_(False)
