"""The super-resolution UNet: a noisy slice and a coarse one in, the velocity of the noisy slice out.

A small "efficient" UNet of the Imagen family (halving before each level, no self-attention), in its published names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from baselines.generatect.config import SuperResolutionConfig
from baselines.generatect.models.conditioning import Conditioning, GainNorm, split_heads

GROUPS = 8
SKIP_SCALE = 2**-0.5
FIRST_KERNELS = (3, 7, 15)


class CrossEmbedding(nn.Module):
    """Convolutions of several kernel sizes side by side; the smallest has half of the channels."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        shares = [channels // 2**i for i in range(1, len(FIRST_KERNELS))]
        shares.append(channels - sum(shares))
        self.convs = nn.ModuleList(
            nn.Conv2d(in_channels, share, kernel, padding=kernel // 2)
            for share, kernel in zip(shares, FIRST_KERNELS, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, channels, h, w)."""
        return torch.cat([conv(x) for conv in self.convs], dim=1)


class Block(nn.Module):
    """Norm, optional scale and shift, activation, convolution."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.groupnorm = nn.GroupNorm(GROUPS, in_channels)
        self.project = nn.Conv2d(in_channels, channels, 3, padding=1)

    def forward(self, x: Tensor, scale: Tensor | float = 0.0, shift: Tensor | float = 0.0) -> Tensor:
        """Return (B, channels, h, w)."""
        return self.project(functional.silu(self.groupnorm(x) * (scale + 1) + shift))


class CrossAttention(nn.Module):
    """Pixels attend to the conditioning tokens and to one learned null token."""

    def __init__(self, dim: int, context_dim: int, heads: int, head_dim: int):
        super().__init__()
        self.heads, inner = heads, heads * head_dim
        self.norm = GainNorm(dim)
        self.null_kv = nn.Parameter(torch.randn(2, head_dim))
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(context_dim, inner * 2, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, dim, bias=False), GainNorm(dim))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return (B, N, D) of pixels (B, N, D) and tokens (B, C, context_dim)."""
        queries = split_heads(self.to_q(self.norm(x)), self.heads)
        keys, values = (split_heads(part, self.heads) for part in self.to_kv(context).chunk(2, -1))
        null_key, null_value = (part.expand(len(x), self.heads, 1, -1) for part in self.null_kv)
        keys, values = torch.cat([null_key, keys], 2), torch.cat([null_value, values], 2)
        out = functional.scaled_dot_product_attention(queries, keys, values)
        return self.to_out(out.transpose(1, 2).flatten(2))


class GlobalContext(nn.Module):
    """Gates channels by an attention-weighted mean of the whole image."""

    def __init__(self, dim: int):
        super().__init__()
        hidden = max(3, dim // 2)
        self.to_k = nn.Conv2d(dim, 1, 1)
        self.net = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.SiLU(), nn.Conv2d(hidden, dim, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D, 1, 1) in (0, 1)."""
        weights = self.to_k(x).flatten(2).softmax(-1)  # (B, 1, h w)
        mean = (x.flatten(2) @ weights.transpose(1, 2))[..., None]  # (B, D, 1, 1)
        return self.net(mean)


class ResnetBlock(nn.Module):
    """Two blocks and a residual; time scales and shifts the second, tokens are attended to between them.

    Args:
        in_channels: of the input.
        channels: of the output.
        time_dim: width of the conditioning vector.
        attention: the cross-attention between the blocks, or None.
        gated: gate the output by its global context.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        time_dim: int,
        attention: CrossAttention | None = None,
        gated: bool = False,
    ):
        super().__init__()
        self.time_mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, channels * 2))
        self.cross_attn = attention
        self.block1, self.block2 = Block(in_channels, channels), Block(channels, channels)
        self.gca = GlobalContext(channels) if gated else None
        self.res_conv = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()

    def forward(self, x: Tensor, vector: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return (B, channels, h, w)."""
        scale, shift = self.time_mlp(vector)[:, :, None, None].chunk(2, dim=1)
        hidden = self.block1(x)
        if self.cross_attn is not None:
            pixels = hidden.flatten(2).transpose(1, 2)  # (B, h w, C)
            hidden = (self.cross_attn(pixels, tokens) + pixels).transpose(1, 2).reshape(hidden.shape)
        hidden = self.block2(hidden, scale, shift)
        if self.gca is not None:
            hidden = hidden * self.gca(hidden)
        return hidden + self.res_conv(x)


class PixelShuffleUpsample(nn.Module):
    """Doubles an image by a 1x1 convolution and a pixel-shuffle whose four pixels start equal."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        convolution = nn.Conv2d(in_channels, channels * 4, 1)
        start = nn.init.kaiming_uniform_(torch.empty(channels, in_channels, 1, 1))
        convolution.weight.data.copy_(start.repeat_interleave(4, dim=0))
        nn.init.zeros_(convolution.bias)
        self.net = nn.Sequential(convolution, nn.SiLU(), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, channels, 2 h, 2 w)."""
        return self.net(x)


class SuperResolutionUNet(Conditioning):
    """Predicts the velocity of a noisy slice (or the slice), given a coarse one of the same size and the report.

    Args:
        config: sizes.
        text_dim: width of the text tower's tokens.
    """

    def __init__(self, config: SuperResolutionConfig, text_dim: int):
        width, heads, head_dim = config.width, config.heads, config.head_dim
        super().__init__(width, text_dim, heads, head_dim)
        self.config, time_dim = config, self.time_dim
        widths = [width, *(width * factor for factor in config.width_factors)]
        last = len(config.width_factors) - 1
        attends = [config.cross_attention_everywhere or level == last for level in range(last + 1)]
        levels = list(zip(widths[:-1], widths[1:], attends, strict=True))

        def attention(channels: int, wanted: bool = True) -> CrossAttention | None:
            return CrossAttention(channels, width, heads, head_dim) if wanted else None

        def gated(in_channels: int, channels: int) -> ResnetBlock:
            return ResnetBlock(in_channels, channels, time_dim, gated=True)

        blocks = range(config.blocks_per_level)
        self.init_conv = CrossEmbedding(2, width)
        self.init_resnet_block = gated(width, width)
        self.downs = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(before * 4, after, 1)),
                    ResnetBlock(after, after, time_dim, attention(after, attends)),
                    nn.ModuleList(gated(after, after) for _ in blocks),
                ]
            )
            for before, after, attends in levels
        )
        deepest = widths[-1]
        self.mid_block1 = ResnetBlock(deepest, deepest, time_dim, attention(deepest))
        self.mid_block2 = ResnetBlock(deepest, deepest, time_dim, attention(deepest))
        self.ups = nn.ModuleList(
            nn.ModuleList(
                [
                    ResnetBlock(after * 2, after, time_dim, attention(after, attends)),
                    nn.ModuleList(gated(after * 2, after) for _ in blocks),
                    nn.Identity(),  # the published place of a self-attention that is off
                    PixelShuffleUpsample(after, before),
                ]
            )
            for before, after, attends in reversed(levels)
        )
        self.final_res_block = gated(width, width)
        self.final_conv = nn.Conv2d(width + 1, 1, 3, padding=1)
        nn.init.zeros_(self.final_conv.weight)
        nn.init.zeros_(self.final_conv.bias)

    def forward(
        self,
        noisy: Tensor,
        log_snr: Tensor,
        coarse: Tensor,
        coarse_log_snr: Tensor,
        text: Tensor,
        text_mask: Tensor,
        keep: Tensor,
    ) -> Tensor:
        """Predict what `config.prediction` says.

        Args:
            noisy: (B, 1, h, w) noisy slice.
            log_snr: (B,) of the noisy slice.
            coarse: (B, 1, h, w) coarse slice, resized and noised.
            coarse_log_snr: (B,) of the coarse slice.
            text: (B, C, text_dim).
            text_mask: (B, C) bool, which text tokens count.
            keep: (B,) bool; False empties a report.

        Returns:
            (B, 1, h, w).
        """
        vector, tokens = self.condition(log_snr, coarse_log_snr, text, text_mask, keep)
        x = self.init_resnet_block(self.init_conv(torch.cat([noisy, coarse], dim=1)), vector)
        skips: list[Tensor] = []
        for downsample, first, rest in self.downs:
            x = first(downsample(x), vector, tokens)
            for block in rest:
                x = block(x, vector)
                skips.append(x)
            skips.append(x)
        x = self.mid_block2(self.mid_block1(x, vector, tokens), vector, tokens)
        for first, rest, _, upsample in self.ups:
            x = first(torch.cat([x, skips.pop() * SKIP_SCALE], dim=1), vector, tokens)
            for block in rest:
                x = block(torch.cat([x, skips.pop() * SKIP_SCALE], dim=1), vector)
            x = upsample(x)
        x = self.final_res_block(x, vector)
        return self.final_conv(torch.cat([x, coarse], dim=1))
