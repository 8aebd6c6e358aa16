"""STDiT, the spatio-temporal transformer of CTFlow (after Open-Sora 1 and PixArt): latents of a clip in, velocity out.

Modules bear the names of the published checkpoint, so that its state dict fits.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers.models.embeddings import get_timestep_embedding
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional

from baselines.ctflow.config import STDiTConfig

FREQUENCIES = 256  # of the time embedding
NORM_EPS = 1e-6


class Attention(nn.Module):
    """Self-attention over the tokens of a sequence, (B, N, C) in and out.

    Args:
        dim: C.
        heads: of the attention.
        scrambled: join the heads as the published code does: (heads, N, C / heads) is read as (N, C) without bringing
            the heads behind the tokens first. A token then holds one head's answer for `heads` neighbouring tokens.
    """

    def __init__(self, dim: int, heads: int, scrambled: bool):
        super().__init__()
        self.heads, self.scrambled = heads, scrambled
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        """Return the tokens after attention."""
        batch, count, _ = tokens_BNC.shape
        q, k, v = self.qkv(tokens_BNC).view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, N, c)
        attended = functional.scaled_dot_product_attention(q, k, v)
        if not self.scrambled:
            attended = attended.transpose(1, 2)  # (B, N, heads, c)
        return self.proj(attended.reshape(tokens_BNC.shape))


class CrossAttention(nn.Module):
    """Attention of the clip's tokens (B, N, C) to those of the text (B, T, C)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens_BNC: Tensor, text_BTC: Tensor) -> Tensor:
        """Return what the tokens take from the text."""
        batch = len(tokens_BNC)
        q = self.q_linear(tokens_BNC).view(batch, -1, self.heads, tokens_BNC.shape[2] // self.heads).transpose(1, 2)
        k, v = self.kv_linear(text_BTC).view(batch, -1, 2, self.heads, q.shape[-1]).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v)  # (B, heads, N, c)
        return self.proj(attended.transpose(1, 2).reshape(tokens_BNC.shape))


class PatchEmbedder(nn.Module):
    """Clip (B, c, T, H, W) to tokens (B, T' S, C), one for each patch."""

    def __init__(self, patch_size: tuple[int, int, int], channels: int, dim: int):
        super().__init__()
        self.proj = nn.Conv3d(channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """Return the tokens."""
        return self.proj(clip_BCTHW).flatten(2).transpose(1, 2)


class TimeEmbedder(nn.Module):
    """t to a vector; cosines first, as published."""

    def __init__(self, dim: int, scale: float):
        super().__init__()
        self.scale = scale
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t_B: Tensor) -> Tensor:
        """Return (B, C)."""
        waves = get_timestep_embedding(t_B, FREQUENCIES, True, 0, scale=self.scale)  # cosines first, exponent n / 128
        return self.mlp(waves.to(self.mlp[0].weight.dtype))


class TextEmbedder(nn.Module):
    """The report's tokens (B, T, text_dim) to (B, T, C). `y_embedding` stands for an empty prompt; it is not learnt."""

    def __init__(self, text_dim: int, num_tokens: int, dim: int):
        super().__init__()
        self.y_proj = Mlp(text_dim, dim, dim, act_layer=_gelu)
        self.register_buffer("y_embedding", torch.randn(num_tokens, text_dim) / text_dim**0.5)

    def forward(self, text_BTC: Tensor, keep_B: Tensor | None) -> Tensor:
        """Return the tokens, those of the empty prompt where `keep_B` is false."""
        if keep_B is not None:
            text_BTC = torch.where(keep_B[:, None, None], text_BTC, self.y_embedding.to(text_BTC.dtype))
        return self.y_proj(text_BTC)


class STDiTBlock(nn.Module):
    """Spatial attention, temporal attention, cross-attention to the text, MLP.

    One time vector of all blocks (adaLN-single) plus a table of the block's own shifts, scales and gates. As in
    Open-Sora the temporal branch is gated like the spatial one, but neither normalised nor modulated.
    """

    def __init__(self, model: STDiTConfig, num_frames: int):
        super().__init__()
        dim = model.hidden_size
        self.num_frames = num_frames
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS, elementwise_affine=False)
        self.attn = Attention(dim, model.heads, model.scrambled_heads)
        self.attn_temp = Attention(dim, model.heads, model.scrambled_heads)
        self.cross_attn = CrossAttention(dim, model.heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS, elementwise_affine=False)
        self.mlp = Mlp(dim, int(dim * model.mlp_ratio), act_layer=_gelu)
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)

    def forward(self, tokens_BNC: Tensor, time_B6C: Tensor, text_BTC: Tensor, frame_positions: Tensor | None) -> Tensor:
        """Return (B, N, C), N = frames x places; `frame_positions` (1, frames, C) joins the temporal branch."""
        batch, _, dim = tokens_BNC.shape
        modulation = self.scale_shift_table + time_B6C
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=1)  # (B, 1, C)

        normed = modulate(self.norm1(tokens_BNC), shift_attn, scale_attn)
        spatial = self.attn(normed.view(batch * self.num_frames, -1, dim))
        tokens_BNC = tokens_BNC + gate_attn * spatial.view_as(tokens_BNC)

        per_place = tokens_BNC.view(batch, self.num_frames, -1, dim).transpose(1, 2)  # (B, S, T, C)
        places = per_place.shape[1]
        per_place = per_place.reshape(batch * places, self.num_frames, dim)
        if frame_positions is not None:
            per_place = per_place + frame_positions
        temporal = self.attn_temp(per_place).view(batch, places, self.num_frames, dim).transpose(1, 2)
        tokens_BNC = tokens_BNC + gate_attn * temporal.reshape(tokens_BNC.shape)

        tokens_BNC = tokens_BNC + self.cross_attn(tokens_BNC, text_BTC)
        return tokens_BNC + gate_mlp * self.mlp(modulate(self.norm2(tokens_BNC), shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    """Tokens to the numbers of their patches."""

    def __init__(self, dim: int, patch_volume: int, channels: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, eps=NORM_EPS, elementwise_affine=False)
        self.linear = nn.Linear(dim, patch_volume * channels)
        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)

    def forward(self, tokens_BNC: Tensor, time_BC: Tensor) -> Tensor:
        """Return (B, N, patch volume x channels)."""
        shift, scale = (self.scale_shift_table + time_BC[:, None]).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(tokens_BNC), shift, scale))


class STDiT(nn.Module):
    """Velocity of a noisy clip, given the clip before it and the report.

    Args:
        model: sizes and switches.
        latent_channels: c of the autoencoder.
        latent_size: H = W of a slice's latents.
        text_dim: width of the text tower's tokens.
        num_text_tokens: T.
    """

    def __init__(self, model: STDiTConfig, latent_channels: int, latent_size: int, text_dim: int, num_text_tokens: int):
        super().__init__()
        dim = model.hidden_size
        self.patch_size, self.channels = tuple(model.patch_size), latent_channels
        self.tokens_shape = (  # frames, rows, columns of tokens
            model.clip_length // self.patch_size[0],
            latent_size // self.patch_size[1],
            latent_size // self.patch_size[2],
        )
        self.x_embedder = PatchEmbedder(self.patch_size, 2 * latent_channels, dim)
        self.t_embedder = TimeEmbedder(dim, model.timestep_scale)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.y_embedder = TextEmbedder(text_dim, num_text_tokens, dim)
        self.blocks = nn.ModuleList(STDiTBlock(model, self.tokens_shape[0]) for _ in range(model.depth))
        self.final_layer = FinalLayer(dim, int(np.prod(self.patch_size)), latent_channels)
        self.register_buffer("pos_embed", place_embedding(dim, *self.tokens_shape[1:])[None])  # (1, S, C)
        self.register_buffer("pos_embed_temporal", sinusoids(np.arange(self.tokens_shape[0]), dim)[None])  # (1, T, C)
        self._initialise()

    def forward(
        self,
        noisy_BCTHW: Tensor,
        t_B: Tensor,
        previous_BCTHW: Tensor,
        text_BTC: Tensor,
        keep_text_B: Tensor | None = None,
        geometry_BC: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Predict the velocity.

        Args:
            noisy_BCTHW: (B, c, T, H, W) latents at time t.
            t_B: (B,) in [0, 1]; 1 is noise.
            previous_BCTHW: (B, c, T, H, W) latents of the clip before.
            text_BTC: (B, T, text_dim) tokens of the report.
            keep_text_B: (B,) bool; false takes the empty prompt. None keeps all.
            geometry_BC: (B, C) added to the time embedding, or None.

        Returns:
            The velocity (B, c, T, H, W), and the tokens (B, frames, places, C) that it was read from.
        """
        frames, rows, columns = self.tokens_shape
        tokens = self.x_embedder(torch.cat([noisy_BCTHW, previous_BCTHW], dim=1))  # (B, frames x places, C)
        tokens = tokens.unflatten(1, (frames, rows * columns))
        tokens = (tokens + self.pos_embed).flatten(1, 2)
        time = self.t_embedder(t_B)  # (B, C)
        if geometry_BC is not None:
            time = time + geometry_BC
        time_B6C = self.t_block(time).unflatten(1, (6, -1))
        text = self.y_embedder(text_BTC, keep_text_B)
        for n, block in enumerate(self.blocks):
            tokens = block(tokens, time_B6C, text, self.pos_embed_temporal if n == 0 else None)
        return self._unpatchify(self.final_layer(tokens, time)), tokens.unflatten(1, (frames, rows * columns))

    def _unpatchify(self, patches_BNP: Tensor) -> Tensor:
        """Bring (B, frames rows columns, t h w c) back to (B, c, T, H, W)."""
        patches = patches_BNP.view(-1, *self.tokens_shape, *self.patch_size, self.channels)
        clip = patches.permute(0, 7, 1, 4, 2, 5, 3, 6)  # (B, c, frames, t, rows, h, columns, w)
        sides = [count * size for count, size in zip(self.tokens_shape, self.patch_size, strict=True)]
        return clip.reshape(len(clip), self.channels, *sides)

    def _initialise(self) -> None:
        """Xavier for all linear layers; temporal and cross-attention and the output begin at zero, as published."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.view(len(self.x_embedder.proj.weight), -1))
        for linear in (
            self.t_embedder.mlp[0],
            self.t_embedder.mlp[2],
            self.t_block[1],
            self.y_embedder.y_proj.fc1,
            self.y_embedder.y_proj.fc2,
        ):
            nn.init.normal_(linear.weight, std=0.02)
        for linear in (
            self.final_layer.linear,
            *(block.attn_temp.proj for block in self.blocks),
            *(block.cross_attn.proj for block in self.blocks),
        ):
            nn.init.zeros_(linear.weight)


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return tokens (1 + scale) + shift."""
    return tokens * (1 + scale) + shift


def sinusoids(positions: np.ndarray, dim: int) -> Tensor:
    """Return (N, dim) float32: sines, then cosines, of the positions at wavelengths up to 2 pi 10000."""
    frequencies = 10000.0 ** (-np.arange(dim // 2) / (dim / 2))
    angles = np.outer(positions, frequencies)
    return torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], axis=1)).float()


def place_embedding(dim: int, rows: int, columns: int) -> Tensor:
    """Return (rows x columns, dim): the column's sinusoids, then the row's."""
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return torch.cat([sinusoids(column.ravel(), dim // 2), sinusoids(row.ravel(), dim // 2)], dim=1)


def _gelu() -> nn.GELU:
    return nn.GELU(approximate="tanh")
