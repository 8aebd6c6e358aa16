"""Fixed weights and inputs, the same for the upstream classes and ours, whose outputs `upstream.json` records.

A tensor's values are drawn by a generator that its name seeds, so no weights need to be stored.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor, nn

from trace_lightning.artifacts import digest

GAINS = ("weight", "gamma", "g", "q_scale", "k_scale")


def fill(network: nn.Module) -> nn.Module:
    """Give every tensor of a network its values: gains about 1, other vectors about 0, the rest by their fan-in."""
    for name, tensor in network.state_dict().items():
        if name.endswith("initted"):
            continue
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        if tensor.ndim == 1:
            gain = name.rsplit(".", 1)[-1] in GAINS
            values = noise * 0.1 + (1.0 if gain else 0.0)
        else:
            fan_in = tensor.shape[-1] if tensor.ndim == 3 else tensor[0].numel()
            values = noise * max(fan_in, 1) ** -0.5
        tensor.copy_(values)
    return network


def layout_digest(state: dict[str, Tensor]) -> str:
    """Return a digest of a state dict's names and shapes."""
    return digest({name: list(tensor.shape) for name, tensor in state.items()})


def volume(slices: int, size: int = 128) -> Tensor:
    """Return (1, 1, F, h, w) in [-1, 1]: smooth waves and a little noise."""
    z, y, x = torch.meshgrid(*(torch.linspace(0, 1, n) for n in (max(slices, 2), size, size)), indexing="ij")
    noise = torch.rand(z.shape, generator=torch.Generator().manual_seed(slices)) - 0.5
    waves = torch.sin(7 * x + 3 * z) * torch.cos(5 * y - 2 * z)
    return (0.8 * waves + 0.4 * noise)[:slices].clamp(-1, 1)[None, None]


def tokens(slices: int, size: int = 8, num_codes: int = 8192) -> Tensor:
    """Return (2, T, H, W) ids; about half of them masked."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(num_codes, (2, slices, size, size), generator=generator)
    return torch.where(torch.rand(ids.shape, generator=generator) < 0.5, num_codes, ids)


def text(dim: int = 768) -> Tensor:
    """Return (2, 9, dim) text tokens; the second report has 6 of them."""
    tokens = torch.randn(2, 9, dim, generator=torch.Generator().manual_seed(6))
    tokens[1, 6:] = 0
    return tokens


def noise(draw: int, shape: tuple[int, ...]) -> Tensor:
    """Return the draw-th noise of a sampling run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(100 + draw))
