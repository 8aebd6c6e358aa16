"""What all backbones share: reading weights strictly, and running grey images through a module in batches."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trace_lightning.errors import UserError


class Network:
    """A frozen backbone on a device, fed with grey images of any number.

    Args:
        module: maps uint8 (n, H, W), or (n, T, H, W), to (n, dim).
        dim: features.
        axes: of one input, 2 for images and 3 for clips.
        batch: inputs at a time; memory is bounded by it, the result does not depend on it.
        device: where it runs.
    """

    def __init__(self, module: nn.Module, *, dim: int, axes: int, batch: int, device: str | torch.device = "cpu"):
        self.module = module.to(device).eval().requires_grad_(False)
        self.dim, self.axes, self.batch, self.device = dim, axes, batch, device

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the features (n, dim) float32 of uint8 (n, H, W) images or (n, T, H, W) clips; n may be 0.

        Raises:
            UserError: clips too short, or images too small, for the network.
        """
        if images.dtype != np.uint8 or images.ndim != self.axes + 1:
            raise ValueError(f"expected uint8 with {self.axes + 1} axes, found {images.dtype} {images.shape}")
        found = np.empty((len(images), self.dim), np.float32)
        with full_precision():
            for start in range(0, len(images), self.batch):
                batch = torch.from_numpy(np.array(images[start : start + self.batch], order="C")).to(self.device)
                found[start : start + self.batch] = self.module(batch).float().cpu().numpy()
        return found


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Keep CUDA from rounding convolutions to ten bits (TF32), so that a GPU gives what a CPU does."""
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        yield


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from .safetensors, or from a .pt or .pth that holds nothing but tensors.

    Raises:
        UserError: not readable, or something else than a state dict.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{path}: not readable as weights ({str(error).splitlines()[0]})") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: holds a {type(state).__name__} that is no state dict of tensors")
    return state


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict in which nothing may be missing, left over or of another shape.

    Only the step counters of batch normalisation may be absent: converted files have none, and nothing reads them.

    Raises:
        UserError: it is not the network's.
    """
    expected = module.state_dict()
    state = {name: value for name, value in expected.items() if name.endswith("num_batches_tracked")} | dict(state)
    wrong = [f"{name} is missing" for name in expected if name not in state]
    wrong += [f"{name} is unknown" for name in state if name not in expected]
    wrong += [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{path}: not the weights of {type(module).__name__}: {'; '.join(wrong[:3])}{more}")
    module.load_state_dict(state)


class GreyImages(nn.Module):
    """Feeds grey images to a backbone of colour images: resized to a square, replicated, normalised.

    Args:
        backbone: maps (n, 3, size, size) to (n, dim).
        size: side in pixels; None keeps the images as they are.
        mode: of `torch.nn.functional.interpolate`.
        antialias: whether it filters where it shrinks.
        mean: of each channel, of values in [0, 1].
        std: likewise.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        size: int | None,
        mode: str = "bilinear",
        antialias: bool = True,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
    ):
        super().__init__()
        self.backbone, self.size, self.mode, self.antialias = backbone, size, mode, antialias
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 (n, H, W) to (n, dim)."""
        x = images[:, None].float() / 255
        if self.size is not None:
            x = nn.functional.interpolate(x, (self.size, self.size), mode=self.mode, antialias=self.antialias)
        return self.backbone((x - self.mean) / self.std)
