"""LPIPS (Zhang et al. 2018, arXiv 1801.03924) between paired slices: AlexNet and the linear heads of v0.1.

It compares images of the same thing, pixel against pixel: for reconstructions, or for volumes generated from the very
mask and report of their real ones, never for two sets.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

from evaluation.features.network import full_precision, load_strictly, read_state
from trace_lightning.errors import UserError

MIN_SIZE = 63  # below it nothing is left after AlexNet's second pooling
LAYERS = {1: (0,), 2: (3,), 3: (6,), 4: (8,), 5: (10,)}  # slices of the lpips package -> convolutions of AlexNet


class Lpips:
    """LPIPS on AlexNet.

    Args:
        path: of AlexNet's weights, with or without its classifier.
        device: where it runs.
        batch: pairs at a time.

    Raises:
        UserError: the package lpips is missing, or the file is not AlexNet's.
    """

    def __init__(self, path: Path, device: str | torch.device = "cpu", batch: int = 8):
        if importlib.util.find_spec("lpips") is None:
            raise UserError("LPIPS needs the package lpips: pip install 'trace-lightning[metrics]'")
        from lpips import LPIPS

        self.device, self.batch = device, batch
        state = read_state(Path(path))
        self.module = LPIPS(net="alex", pnet_rand=True, verbose=False)
        names = {f"features.{i}": f"slice{k}.{i}" for k, layers in LAYERS.items() for i in layers}
        renamed = {}
        for name, value in state.items():
            layer, _, kind = name.rpartition(".")
            if not name.startswith("classifier."):
                renamed[f"{names.get(layer, layer)}.{kind}"] = value
        load_strictly(self.module.net, renamed, Path(path))
        self.module.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the distance of each pair of slices, (n,) float32, 0 for equal ones.

        Args:
            a: (n, H, W) grey or (n, H, W, 3) colour, uint8.
            b: the same shape.

        Raises:
            UserError: slices smaller than AlexNet can see.
        """
        if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
            raise ValueError(f"expected uint8 of one shape, found {a.dtype} {a.shape} and {b.dtype} {b.shape}")
        if min(a.shape[1:3]) < MIN_SIZE:
            raise UserError(
                f"slices of {a.shape[1]} x {a.shape[2]} pixels; LPIPS needs {MIN_SIZE} x {MIN_SIZE} or more"
            )
        found = np.empty(len(a), np.float32)
        with full_precision():
            for start in range(0, len(a), self.batch):
                part = slice(start, start + self.batch)
                found[part] = self.module(self._images(a[part]), self._images(b[part])).flatten().cpu().numpy()
        return found

    def _images(self, x: np.ndarray) -> torch.Tensor:
        images = torch.from_numpy(np.array(x, order="C")).to(self.device)
        images = images.permute(0, 3, 1, 2) if images.ndim == 4 else images[:, None].expand(-1, 3, -1, -1)
        return images.float() / 127.5 - 1
