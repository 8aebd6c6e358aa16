"""The transformer that CT-ViT and the token transformer share (names and sizes of the published weights).

Letters: B batch, T token slices along z, H W token rows and columns, L tokens of a sequence, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Axes = Literal["space", "time", "all"]  # what a sequence runs along: a slice, a column along z, the whole volume
LOGIT_SCALE = 8.0  # of the cosine similarity of queries and keys


class LayerNorm(nn.Module):
    """Layer norm whose shift stays zero, but is stored."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., D) normalised along D."""
        return functional.layer_norm(x, x.shape[-1:], self.gamma, self.beta)


class GEGLU(nn.Module):
    """Half of the channels times the GELU of the other half."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., D / 2)."""
        values, gate = x.chunk(2, dim=-1)
        return functional.gelu(gate) * values


def feed_forward(dim: int, factor: float = 4.0) -> nn.Sequential:
    """Return the gated feed-forward block; a third of its hidden width is traded for the gate."""
    hidden = int(factor * (2 / 3) * dim)
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, hidden * 2, bias=False),
        GEGLU(),
        nn.Identity(),  # the published place of a dropout of 0
        nn.Linear(hidden, dim, bias=False),
    )


class PEG(nn.Module):
    """Position encoding generator: a depthwise 3x3x3 convolution over the token grid.

    Args:
        dim: D.
        causal: pad along z on the lower side only, so that no token sees a slice above it.
    """

    def __init__(self, dim: int, causal: bool):
        super().__init__()
        self.along_z = (2, 0) if causal else (1, 1)
        self.dsconv = nn.Conv3d(dim, dim, 3, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, H, W, D) from the same."""
        padded = functional.pad(x.movedim(-1, 1), (1, 1, 1, 1, *self.along_z))
        return self.dsconv(padded).movedim(1, -1)


class Attention(nn.Module):
    """Cosine-similarity attention, to the sequence itself or to a context, with learned null keys and values.

    Keys and values of self-attention come from the input before its norm, as in the published network.

    Args:
        dim: D.
        head_dim: width of a head.
        heads: number of heads.
        context_dim: width of the context; None: self-attention.
        num_null: learned keys and values that are always there to be attended to.
    """

    def __init__(self, dim: int, head_dim: int, heads: int, context_dim: int | None = None, num_null: int = 0):
        super().__init__()
        self.heads, inner = heads, head_dim * heads
        self.norm = LayerNorm(dim)
        self.context_norm = LayerNorm(context_dim or dim)
        self.null_kv = nn.Parameter(torch.randn(heads, 2 * num_null, head_dim))
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(context_dim or dim, inner * 2, bias=False)
        self.q_scale = nn.Parameter(torch.ones(head_dim))
        self.k_scale = nn.Parameter(torch.ones(head_dim))
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(
        self, x: Tensor, context: Tensor | None = None, keep: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Return the attended values.

        Args:
            x: (N, L, D).
            context: (N, C, context_dim); None: `x` attends to itself.
            keep: (N, C) bool, which of the context may be attended to.
            bias: (heads, L, L) added to the logits; -inf forbids.

        Returns:
            (N, L, D).
        """
        source = x if context is None else self.context_norm(context)
        queries = self._split(self.to_q(self.norm(x)))  # (N, heads, L, head_dim)
        keys, values = (self._split(part) for part in self.to_kv(source).chunk(2, dim=-1))
        null = self.null_kv.expand(len(x), -1, -1, -1)  # keys and values take turns
        keys, values = torch.cat([null[:, :, 0::2], keys], 2), torch.cat([null[:, :, 1::2], values], 2)
        queries = functional.normalize(queries, dim=-1) * self.q_scale
        keys = functional.normalize(keys, dim=-1) * self.k_scale
        mask = None if bias is None else bias.to(queries.dtype)
        if keep is not None:
            num_null = null.shape[2] // 2
            mask = functional.pad(keep, (num_null, 0), value=True)[:, None, None, :]  # (N, 1, 1, C)
        out = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=LOGIT_SCALE)
        return self.to_out(out.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class ContinuousPositionBias(nn.Module):
    """A small network that turns relative token positions (sign(x) log(1 + |x|)) into a bias for each head.

    It is evaluated once for each relative position and not, as published, for each pair of tokens, which is the same
    and takes a thousandth of the memory at 6464 tokens.

    Args:
        dim: width of the network.
        heads: number of heads.
        num_axes: 2 for a slice, 3 for a volume.
    """

    def __init__(self, dim: int, heads: int, num_axes: int):
        super().__init__()
        self.net = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(num_axes, dim), nn.LeakyReLU(0.1)),
                nn.Sequential(nn.Linear(dim, dim), nn.LeakyReLU(0.1)),
                nn.Linear(dim, heads),
            ]
        )

    def forward(self, *shape: int) -> Tensor:
        """Return (heads, L, L) for a grid of `shape`, L its tokens in C order."""
        device = self.net[-1].weight.device
        offsets = [torch.arange(1 - n, n, device=device) for n in shape]
        offset_grid = torch.stack(torch.meshgrid(*offsets, indexing="ij"), dim=-1).float()
        bias = offset_grid.sign() * (offset_grid.abs() + 1).log()
        for layer in self.net:
            bias = layer(bias)  # (2 T - 1, ..., heads)
        places = torch.meshgrid(*(torch.arange(n, device=device) for n in shape), indexing="ij")
        index = torch.zeros((), dtype=torch.long, device=device)
        for place, n in zip(places, shape, strict=True):
            difference = place.reshape(-1, 1) - place.reshape(1, -1) + n - 1  # (L, L), from 0
            index = index * (2 * n - 1) + difference
        return bias.flatten(0, -2).t()[:, index]


class Transformer(nn.Module):
    """Layers of position encoding, self-attention, optional cross-attention and feed-forward.

    Args:
        dim: D.
        depth: number of layers.
        heads: of attention.
        head_dim: width of a head.
        causal_peg: see `PEG`.
        context_dim: width of the text tokens; None: no cross-attention.
        mixed_axes: as published, the position encoding of sequences along z reads (column, T) memory as if it were
            (T, row, column): it convolves tokens that are no neighbours, across all slices. False reads the true grid.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        head_dim: int,
        causal_peg: bool,
        context_dim: int | None = None,
        mixed_axes: bool = False,
    ):
        super().__init__()
        self.mixed_axes = mixed_axes
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PEG(dim, causal_peg),
                    Attention(dim, head_dim, heads),
                    None if context_dim is None else Attention(dim, head_dim, heads, context_dim, num_null=2),
                    feed_forward(dim),
                ]
            )
            for _ in range(depth)
        )
        self.norm_out = LayerNorm(dim)

    def forward(
        self,
        grid: Tensor,
        axes: Axes,
        bias: Tensor | None = None,
        context: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Return transformed tokens.

        Args:
            grid: (B, T, H, W, D).
            axes: what attention runs along.
            bias: (heads, L, L) for self-attention.
            context: (B, C, context_dim) text tokens.
            keep: (B, C) bool, the text tokens that count.

        Returns:
            (B, T, H, W, D).
        """
        x = _fold(grid, axes)  # (N, L, D)
        for peg, self_attention, cross_attention, feed in self.layers:
            x = self._encode_positions(peg, x, grid.shape, axes) + x
            x = self_attention(x, bias=bias) + x
            if cross_attention is not None:
                x = cross_attention(x, context=context, keep=keep) + x
            x = feed(x) + x
        return _unfold(self.norm_out(x), grid.shape, axes)

    def _encode_positions(self, peg: PEG, x: Tensor, shape: torch.Size, axes: Axes) -> Tensor:
        if self.mixed_axes:
            return peg(x.reshape(shape)).reshape(x.shape)
        return _fold(peg(_unfold(x, shape, axes)), axes)


def _fold(grid: Tensor, axes: Axes) -> Tensor:
    """Return (N, L, D) sequences of a (B, T, H, W, D) grid."""
    if axes == "space":
        return grid.flatten(2, 3).flatten(0, 1)
    if axes == "time":
        return grid.movedim(1, 3).flatten(0, 2)
    return grid.flatten(1, 3)


def _unfold(x: Tensor, shape: torch.Size, axes: Axes) -> Tensor:
    """Return the (B, T, H, W, D) grid of sequences; the inverse of `_fold`."""
    if axes == "time":
        batch, slices, height, width, dim = shape
        return x.reshape(batch, height, width, slices, dim).movedim(3, 1)
    return x.reshape(shape)
