"""How time and text enter the super-resolution UNet: tokens for cross-attention and one vector for all blocks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

NUM_TIME_TOKENS, NUM_LATENTS, NUM_POOLED = 2, 32, 4
MAX_TEXT_TOKENS = 256
FREQUENCIES = 8


class GainNorm(nn.Module):
    """Layer norm with a gain and no shift."""

    def __init__(self, dim: int):
        super().__init__()
        self.g = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., D) normalised along D."""
        return functional.layer_norm(x, x.shape[-1:], self.g)


class FourierFeatures(nn.Module):
    """A number, and sines and cosines of it at learned frequencies."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(FREQUENCIES))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 17) of (B,)."""
        angles = x[:, None] * self.weights * (2 * math.pi)
        return torch.cat([x[:, None], angles.sin(), angles.cos()], dim=-1)


class TextPooling(nn.Module):
    """Perceiver that reads any number of text tokens into 4 + 32 latents.

    Args:
        dim: D of tokens and latents.
        heads: of attention.
        head_dim: width of a head.
    """

    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.pos_emb = nn.Embedding(512, dim)
        self.latents = nn.Parameter(torch.randn(NUM_LATENTS, dim))
        self.to_latents_from_mean_pooled_seq = nn.Sequential(
            GainNorm(dim), nn.Linear(dim, dim * NUM_POOLED), nn.Unflatten(-1, (NUM_POOLED, dim))
        )
        self.layers = nn.ModuleList(
            nn.ModuleList([LatentAttention(dim, heads, head_dim), _feed_forward(dim)]) for _ in range(2)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, 36, D) of (B, C, D)."""
        pooled = self.to_latents_from_mean_pooled_seq(tokens.mean(1))
        latents = torch.cat([pooled, self.latents.expand(len(tokens), -1, -1)], dim=1)
        placed = tokens + self.pos_emb(torch.arange(tokens.shape[1], device=tokens.device))
        for attention, feed in self.layers:
            latents = attention(placed, latents) + latents
            latents = feed(latents) + latents
        return latents


class LatentAttention(nn.Module):
    """Latents attend to the text tokens and to each other."""

    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.heads, inner = heads, heads * head_dim
        self.norm, self.norm_latents = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, inner * 2, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, dim, bias=False), nn.LayerNorm(dim))

    def forward(self, tokens: Tensor, latents: Tensor) -> Tensor:
        """Return (B, N, D) for latents (B, N, D) and tokens (B, C, D)."""
        latents = self.norm_latents(latents)
        source = torch.cat([self.norm(tokens), latents], dim=1)
        queries, keys, values = (
            split_heads(part, self.heads) for part in (self.to_q(latents), *self.to_kv(source).chunk(2, -1))
        )
        out = functional.scaled_dot_product_attention(queries, keys, values)
        return self.to_out(out.transpose(1, 2).flatten(2))


class Conditioning(nn.Module):
    """Time, noise level of the coarse image, and text.

    Its submodules keep the published names, which lie directly in the UNet: the UNet inherits from it.

    Args:
        width: of the UNet's first level; also that of the tokens.
        text_dim: width of the text tower's tokens.
        heads: of the text pooling.
        head_dim: width of a head.
    """

    def __init__(self, width: int, text_dim: int, heads: int, head_dim: int):
        super().__init__()
        self.time_dim = time_dim = width * 8
        self.to_time_hiddens, self.to_time_cond, self.to_time_tokens = _time_layers(time_dim, width)
        self.to_lowres_time_hiddens, self.to_lowres_time_cond, self.to_lowres_time_tokens = _time_layers(
            time_dim, width
        )
        self.norm_cond = nn.LayerNorm(width)
        self.text_to_cond = nn.Linear(text_dim, width)
        self.attn_pool = TextPooling(width, heads, head_dim)
        self.null_text_embed = nn.Parameter(torch.randn(1, MAX_TEXT_TOKENS, width))
        self.null_text_hidden = nn.Parameter(torch.randn(1, time_dim))
        self.to_text_non_attn_cond = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim)
        )

    def condition(
        self, log_snr: Tensor, coarse_log_snr: Tensor, text: Tensor, text_mask: Tensor, keep: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the vector (B, time_dim) and the tokens (B, 40, width) that condition the blocks.

        Args:
            log_snr: (B,) of the noisy image.
            coarse_log_snr: (B,) of the coarse image.
            text: (B, C, text_dim), at most 256 tokens.
            text_mask: (B, C) bool, which tokens count.
            keep: (B,) bool; False empties a report (classifier-free guidance).
        """
        hidden, coarse_hidden = self.to_time_hiddens(log_snr), self.to_lowres_time_hiddens(coarse_log_snr)
        vector = self.to_time_cond(hidden) + self.to_lowres_time_cond(coarse_hidden)
        missing = MAX_TEXT_TOKENS - text.shape[1]
        words = functional.pad(self.text_to_cond(text), (0, 0, 0, missing))
        present = functional.pad(text_mask, (0, missing)) & keep[:, None]  # (B, 256)
        words = self.attn_pool(torch.where(present[:, :, None], words, self.null_text_embed))  # (B, 36, width)
        pooled = self.to_text_non_attn_cond(words.mean(1))
        vector = vector + torch.where(keep[:, None], pooled, self.null_text_hidden)
        times = [self.to_time_tokens(hidden), self.to_lowres_time_tokens(coarse_hidden)]
        return vector, self.norm_cond(torch.cat([*times, words], dim=1))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Return (B, heads, N, D / heads) of (B, N, D)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _time_layers(time_dim: int, width: int) -> tuple[nn.Sequential, nn.Sequential, nn.Sequential]:
    hiddens = nn.Sequential(FourierFeatures(), nn.Linear(2 * FREQUENCIES + 1, time_dim), nn.SiLU())
    cond = nn.Sequential(nn.Linear(time_dim, time_dim))
    tokens = nn.Sequential(nn.Linear(time_dim, width * NUM_TIME_TOKENS), nn.Unflatten(-1, (NUM_TIME_TOKENS, width)))
    return hiddens, cond, tokens


def _feed_forward(dim: int, factor: int = 4) -> nn.Sequential:
    hidden = dim * factor
    return nn.Sequential(
        GainNorm(dim),
        nn.Linear(dim, hidden, bias=False),
        nn.GELU(),
        GainNorm(hidden),
        nn.Linear(hidden, dim, bias=False),
    )
