"""CT-ViT: a volume to a grid of discrete tokens and back.

The first slice is a token slice of its own; after it each token covers `slice_patch` slices, so a volume has
1 + k slice_patch slices. Letters as in `attention`; F slices of the volume.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baselines.generatect.config import TokenizerConfig
from baselines.generatect.models.attention import ContinuousPositionBias, Transformer
from baselines.generatect.models.quantizer import VectorQuantize


class ToPatches(nn.Module):
    """Cut (B, 1, F, h, w) into (B, F / s, h / p, w / p, s p p)."""

    def __init__(self, slices: int, pixels: int):
        super().__init__()
        self.slices, self.pixels = slices, pixels

    def forward(self, volume: Tensor) -> Tensor:
        """Return the patches, each in C order (slice, row, column)."""
        patches = volume[:, 0].unflatten(1, (-1, self.slices))  # (B, T, s, h, w)
        patches = patches.unflatten(4, (-1, self.pixels)).unflatten(3, (-1, self.pixels))  # (B, T, s, H, p, W, p)
        return patches.permute(0, 1, 3, 5, 2, 4, 6).flatten(4)


class FromPatches(nn.Module):
    """The inverse of `ToPatches`."""

    def __init__(self, slices: int, pixels: int):
        super().__init__()
        self.slices, self.pixels = slices, pixels

    def forward(self, patches: Tensor) -> Tensor:
        """Return (B, 1, F, h, w)."""
        patches = patches.unflatten(-1, (self.slices, self.pixels, self.pixels))  # (B, T, H, W, s, p, p)
        return patches.permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4).flatten(1, 2)[:, None]


class CTViT(nn.Module):
    """The tokenizer.

    Args:
        config: sizes, and how the published network differs from its description.
        image_size: h = w of the coarse volume.
    """

    def __init__(self, config: TokenizerConfig, image_size: int):
        super().__init__()
        dim, patch, slices = config.dim, config.patch, config.slice_patch
        self.config, self.grid_size = config, image_size // patch
        self.spatial_rel_pos_bias = ContinuousPositionBias(dim, config.heads, num_axes=2)
        self.to_patch_emb_first_frame = self._embedding(1, patch, dim)
        self.to_patch_emb = self._embedding(slices, patch, dim)
        self.enc_spatial_transformer = self._transformer(config.spatial_depth)
        self.enc_temporal_transformer = self._transformer(config.time_depth, mixed_axes=config.mixed_axes)
        self.vq = VectorQuantize(dim, config.codebook_size, config.codebook_decay, config.revive_below)
        self.dec_spatial_transformer = self._transformer(config.spatial_depth)
        self.dec_temporal_transformer = self._transformer(config.time_depth, mixed_axes=config.mixed_axes)
        self.to_pixels_first_frame = nn.Sequential(nn.Linear(dim, patch**2), FromPatches(1, patch))
        self.to_pixels = nn.Sequential(nn.Linear(dim, slices * patch**2), FromPatches(slices, patch))

    def forward(self, volume: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct a volume from its tokens.

        Args:
            volume: (B, 1, F, h, w) in [-1, 1].
            generator: of the codebook's replacement of dead codes, in training.

        Returns:
            (B, 1, F, h, w) reconstruction, (B, T, H, W) indices, scalar commitment loss.
        """
        quantized, indices, commitment = self.vq(self.encode(volume), generator)
        return self.decode(quantized), indices, commitment

    def tokenize(self, volume: Tensor) -> Tensor:
        """Return (B, T, H, W) indices of (B, 1, F, h, w)."""
        return self.vq._codebook.nearest(self.encode(volume))

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Return (B, 1, F, h, w) of (B, T, H, W) indices."""
        return self.decode(self.vq.codes(indices))

    def encode(self, volume: Tensor) -> Tensor:
        """Return (B, T, H, W, D) before quantisation."""
        first, rest = volume[:, :, :1], volume[:, :, 1:]
        tokens = torch.cat([self.to_patch_emb_first_frame(first), self.to_patch_emb(rest)], dim=1)
        tokens = self.enc_spatial_transformer(tokens, "space", bias=self._space_bias())
        return self.enc_temporal_transformer(tokens, "time", bias=self._time_bias(tokens))

    def decode(self, tokens: Tensor) -> Tensor:
        """Return (B, 1, F, h, w) of (B, T, H, W, D)."""
        tokens = self.dec_temporal_transformer(tokens, "time", bias=self._time_bias(tokens))
        tokens = self.dec_spatial_transformer(tokens, "space", bias=self._space_bias())
        return torch.cat([self.to_pixels_first_frame(tokens[:, :1]), self.to_pixels(tokens[:, 1:])], dim=2)

    def num_token_slices(self, num_slices: int) -> int:
        """Return T of a volume of `num_slices`, 1 + k slice_patch."""
        return 1 + (num_slices - 1) // self.config.slice_patch

    def _space_bias(self) -> Tensor:
        return self.spatial_rel_pos_bias(self.grid_size, self.grid_size)

    def _time_bias(self, tokens: Tensor) -> Tensor | None:
        """Return (1, T, T) that forbids slices above, where attention along z is causal."""
        if not self.config.causal_time:
            return None
        slices = tokens.shape[1]
        return torch.full((1, slices, slices), float("-inf"), device=tokens.device).triu(1)

    def _embedding(self, slices: int, patch: int, dim: int) -> nn.Sequential:
        values = slices * patch**2
        return nn.Sequential(ToPatches(slices, patch), nn.LayerNorm(values), nn.Linear(values, dim), nn.LayerNorm(dim))

    def _transformer(self, depth: int, mixed_axes: bool = False) -> Transformer:
        config = self.config
        return Transformer(config.dim, depth, config.heads, config.head_dim, causal_peg=True, mixed_axes=mixed_axes)
