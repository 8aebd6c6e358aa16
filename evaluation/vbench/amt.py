"""AMT-S, which predicts the frame midway between two, under the names of its published weights.

Li et al., AMT: All-Pairs Multi-Field Transforms for Efficient Frame Interpolation, CVPR 2023. Flows from the middle to
both frames are estimated from coarse to fine and corrected at each level by looking up a correlation of all pairs of
pixels (RAFT's); three flows a pixel then warp both frames, and a small network combines what they bring.
The weights are for non-commercial use (CC BY-NC 4.0).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import grid_sample, instance_norm, interpolate, relu
from torchvision.models.optical_flow.raft import CorrBlock

STRIDE = 16  # pixels; sides are multiples of it
MIN_SIDE = 128  # pixels: the coarsest correlation map must be 2 x 2
CHANNELS = (20, 32, 44, 56)  # of the pyramid, at 1/2, 1/4, 1/8, 1/16
SIDE_CHANNELS = 20
FLOWS = 3
LEVELS, RADIUS = 4, 3  # of the correlation
MIDDLE = 0.5  # the moment that is predicted, between 0 and 1


def resized(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Resize bilinearly."""
    return x if factor == 1 else interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def warped(image: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Look up each pixel of `image` where `flow`, (B, 2, H, W) in pixels along (x, y), points; edges are repeated."""
    height, width = flow.shape[-2:]
    y = torch.linspace(-1, 1, height, device=flow.device)[:, None].expand(height, width)
    x = torch.linspace(-1, 1, width, device=flow.device)[None].expand(height, width)
    grid = torch.stack([x + flow[:, 0] / ((width - 1) / 2), y + flow[:, 1] / ((height - 1) / 2)], dim=-1)
    return grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps the size but for its stride."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)


def conv_prelu(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a 3 x 3 convolution and its activation."""
    return nn.Sequential(conv(inputs, outputs, stride=stride), nn.PReLU(outputs))


def two_convs(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return two 3 x 3 convolutions with a leaky ReLU between them."""
    return nn.Sequential(conv(inputs, hidden), nn.LeakyReLU(0.1), conv(hidden, outputs))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1, each with instance normalisation and ReLU, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        narrow = outputs // 4
        self.conv1, self.conv2 = conv(inputs, narrow, 1), conv(narrow, narrow, 3, stride)
        self.conv3 = conv(narrow, outputs, 1)
        self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride)) if stride > 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        y = x
        for layer in (self.conv1, self.conv2, self.conv3):
            y = relu(instance_norm(layer(y)))
        return relu(y + (x if self.downsample is None else instance_norm(self.downsample(x))))


class CorrelationFeatures(nn.Module):
    """Features at 1/8 that the frames are correlated by."""

    def __init__(self, outputs: int = 84):
        super().__init__()
        self.conv1 = conv(3, 32, 7, stride=2)
        self.layer1 = nn.Sequential(Bottleneck(32, 32, 1), Bottleneck(32, 32, 1))
        self.layer2 = nn.Sequential(Bottleneck(32, 64, 2), Bottleneck(64, 64, 1))
        self.layer3 = nn.Sequential(Bottleneck(64, 96, 2), Bottleneck(96, 96, 1))
        self.conv2 = conv(96, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, 3, H, W) to (B, outputs, H / 8, W / 8)."""
        x = relu(instance_norm(self.conv1(x)))
        return self.conv2(self.layer3(self.layer2(self.layer1(x))))


class Pyramid(nn.ModuleDict):
    """Features at 1/2, 1/4, 1/8 and 1/16."""

    def __init__(self):
        stages, inputs = {}, 3
        for level, channels in enumerate(CHANNELS, 1):
            stages[f"pyramid{level}"] = nn.Sequential(conv_prelu(inputs, channels, 2), conv_prelu(channels, channels))
            inputs = channels
        super().__init__(stages)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the four levels, finest first."""
        levels = []
        for stage in self.values():
            x = stage(x)
            levels.append(x)
        return levels


class SideResidual(nn.Module):
    """Five convolutions and a shortcut; the second and fourth work on the last channels alone."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1, self.conv3 = conv_prelu(channels, channels), conv_prelu(channels, channels)
        self.conv2, self.conv4 = conv_prelu(SIDE_CHANNELS, SIDE_CHANNELS), conv_prelu(SIDE_CHANNELS, SIDE_CHANNELS)
        self.conv5, self.prelu = conv(channels, channels), nn.PReLU(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, channels, H, W) to the same shape."""
        y = self._on_side(self.conv2, self.conv1(x))
        y = self._on_side(self.conv4, self.conv3(y))
        return self.prelu(x + self.conv5(y))

    @staticmethod
    def _on_side(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :-SIDE_CHANNELS], layer(x[:, -SIDE_CHANNELS:])], dim=1)


class Decoder(nn.Module):
    """Doubles the resolution."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.convblock = nn.Sequential(
            conv_prelu(inputs, hidden), SideResidual(hidden), nn.ConvTranspose2d(hidden, outputs, 4, 2, 1)
        )

    def forward(self, *parts: torch.Tensor) -> torch.Tensor:
        """Map parts (B, c_i, H, W), `inputs` channels together, to (B, outputs, 2 H, 2 W)."""
        return self.convblock(torch.cat(parts, dim=1))


class Update(nn.Module):
    """Corrects flows and features by the correlation, at 1/8, whatever the resolution they come in."""

    def __init__(self, channels: int, scale: int):
        super().__init__()
        self.scale = scale
        self.convc1 = conv(2 * LEVELS * (2 * RADIUS + 1) ** 2, 64, 1)
        self.convf1, self.convf2 = conv(4, 40, 7), conv(40, 20)
        self.conv = conv(64 + 20, 68)
        self.gru = two_convs(68 + 4 + channels, 76, 76)
        self.feat_head, self.flow_head = two_convs(76, 76, channels), two_convs(76, 76, 4)
        self.activation = nn.LeakyReLU(0.1)

    def forward(
        self, features: torch.Tensor, flows: torch.Tensor, correlation: Correlation
    ) -> tuple[torch.Tensor, ...]:
        """Return corrected `features` (B, channels, H, W) and `flows` (B, 4, H, W)."""
        coarse = resized(flows, 1 / self.scale) / self.scale
        found = self.activation(self.convc1(correlation(coarse)))
        motion = self.activation(self.convf2(self.activation(self.convf1(coarse))))
        both = self.activation(self.conv(torch.cat([found, motion], dim=1)))
        hidden = self.gru(torch.cat([both, coarse, resized(features, 1 / self.scale)], dim=1))
        features = features + resized(self.feat_head(hidden), self.scale)
        return features, flows + self.scale * resized(self.flow_head(hidden), self.scale)


class Correlation:
    """Every pixel of one frame with every pixel of the other, looked up in both directions around where flows lead."""

    def __init__(self, before: torch.Tensor, after: torch.Tensor):
        self.blocks = CorrBlock(num_levels=LEVELS, radius=RADIUS), CorrBlock(num_levels=LEVELS, radius=RADIUS)
        self.blocks[0].build_pyramid(before, after)
        self.blocks[1].build_pyramid(after, before)
        height, width = before.shape[-2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        self.pixels = torch.stack([x, y]).float().to(before.device)

    def __call__(self, flows: torch.Tensor) -> torch.Tensor:
        """Return (B, 2 * LEVELS * (2 * RADIUS + 1)^2, H, W).

        Args:
            flows: (B, 4, H, W), from the middle to the first frame and to the second. Motion is taken as linear, so the
                whole way from one frame to the other is the flow to the other over its share of the time.
        """
        to_before, to_after = flows.chunk(2, dim=1)
        ahead = self.blocks[0].index_pyramid(self.pixels + to_after / MIDDLE)
        back = self.blocks[1].index_pyramid(self.pixels + to_before / (1 - MIDDLE))
        return torch.cat([ahead, back], dim=1)


class AmtS(nn.Module):
    """The network: 2.99 M weights."""

    def __init__(self):
        super().__init__()
        c1, c2, c3, c4 = CHANNELS
        self.feat_encoder = CorrelationFeatures()
        self.encoder = Pyramid()
        self.decoder4 = Decoder(2 * c4 + 1, 2 * c4, 4 + c3)
        self.decoder3 = Decoder(3 * c3 + 4, 3 * c3, 4 + c2)
        self.decoder2 = Decoder(3 * c2 + 4, 3 * c2, 4 + c1)
        self.decoder1 = Decoder(3 * c1 + 4, 3 * c1, 8 * FLOWS)
        self.update4, self.update3, self.update2 = Update(c3, 1), Update(c2, 2), Update(c1, 4)
        self.comb_block = nn.Sequential(conv(3 * FLOWS, 6 * FLOWS), nn.PReLU(6 * FLOWS), conv(6 * FLOWS, 3))

    def forward(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Predict the frame midway.

        Args:
            before: (B, 3, H, W) in [0, 1], sides multiples of 16 and at least 128.
            after: the same.

        Returns:
            (B, 3, H, W) in [0, 1].
        """
        mean = torch.cat([before, after], dim=2).mean(dim=(1, 2, 3), keepdim=True)
        before, after = before - mean, after - mean
        correlation = Correlation(self.feat_encoder(before), self.feat_encoder(after))
        a1, a2, a3, a4 = self.encoder(before)
        b1, b2, b3, b4 = self.encoder(after)

        out = self.decoder4(a4, b4, torch.full_like(a4[:, :1], MIDDLE))
        features, flows = self.update4(out[:, 4:], out[:, :4], correlation)
        for decoder, update, a, b in ((self.decoder3, self.update3, a3, b3), (self.decoder2, self.update2, a2, b2)):
            out = self._decoded(decoder, features, flows, a, b)
            features, flows = update(out[:, 4:], out[:, :4] + 2 * resized(flows, 2), correlation)
        out = self._decoded(self.decoder1, features, flows, a1, b1)
        return self._combined(before, after, mean, out, 2 * resized(flows, 2)).clamp(0, 1)

    @staticmethod
    def _decoded(decoder: Decoder, features, flows, a, b) -> torch.Tensor:
        return decoder(features, warped(a, flows[:, :2]), warped(b, flows[:, 2:]), flows)

    def _combined(self, before, after, mean, out, flows) -> torch.Tensor:
        """Warp both frames by several flows and merge the candidates."""
        to_before, to_after, share, residual = out.split([2 * FLOWS, 2 * FLOWS, FLOWS, 3 * FLOWS], dim=1)
        share = share.sigmoid()
        candidates = []
        for k in range(FLOWS):
            x = warped(before, flows[:, :2] + to_before[:, 2 * k : 2 * k + 2])
            y = warped(after, flows[:, 2:] + to_after[:, 2 * k : 2 * k + 2])
            w = share[:, k : k + 1]
            candidates.append(w * x + (1 - w) * y + mean + residual[:, 3 * k : 3 * k + 3])
        return torch.stack(candidates).mean(0) + self.comb_block(torch.cat(candidates, dim=1))
