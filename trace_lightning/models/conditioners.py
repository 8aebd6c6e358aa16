"""How each condition enters the UNet: one module a condition; a row of the ablation is a list of them.

Letters: B batch, F frames of a sample (2 for a pair), H W image, T tokens, C channels or width, D embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from trace_lightning.config import ModelConfig
from trace_lightning.models.embeddings import position_embedding


@dataclass
class Conditions:
    """What is known of a batch of samples; a row that lacks a condition leaves it None.

    Attributes:
        positions: (B, F) r of Eq. 7, in [0, 1].
        masks: (B, M, H, W) encoded masks or guidance maps.
        text: (B, T, C) token embeddings.
        flow: (B, 2, h, w) optical flow from the first frame to the second, as a fraction of the image size.
        known: (B,) 1 where the first frame is given clean, 0 where it is noise as the second; None is 0.
    """

    positions: Tensor
    masks: Tensor | None = None
    text: Tensor | None = None
    flow: Tensor | None = None
    known: Tensor | None = None

    def without_text(self) -> Conditions:
        """Return the same conditions with empty text, for classifier-free guidance."""
        return replace(self, text=torch.zeros_like(self.text))

    def filled_up(self, batch: int) -> Conditions:
        """Return conditions of a larger batch, the last sample repeated."""
        parts = (self.positions, self.masks, self.text, self.flow, self.known)
        return Conditions(*(None if part is None else filled_up(part, batch) for part in parts))


def filled_up(samples: Tensor, batch: int) -> Tensor:
    """Return (batch, ...) from (B, ...), the last sample repeated."""
    return torch.cat([samples, samples[-1:].expand(batch - len(samples), *samples.shape[1:])])


@dataclass
class UNetInputs:
    """What the conditioners fill in before the UNet runs."""

    channels: list[Tensor] = field(default_factory=list)  # (B, ?, H, W), concatenated with the noisy frames
    class_labels: Tensor | None = None  # (B, D), joins the time embedding
    encoder_hidden_states: Tensor | None = None  # (B, T, C), cross-attention context
    mid_block_residual: Tensor | None = None  # (B, C, h, w), added after the middle block


class PositionConditioner(nn.Module):
    """The embeddings of the frames' positions join the time embedding (Sec. 3.2.3)."""

    def __init__(self, model: ModelConfig):
        super().__init__()
        self.dim, self.scale, self.exponent = model.frame_embedding_dim, model.position_scale, model.position_lambda

    def forward(self, conditions: Conditions, inputs: UNetInputs) -> None:
        """Set `class_labels`, (B, F * d)."""
        embedding = position_embedding(conditions.positions, self.dim, self.scale, self.exponent)  # (B, F, d)
        inputs.class_labels = embedding.flatten(1)  # (B, F * d)


class MaskConditioner(nn.Module):
    """Masks are concatenated with the noisy frames at every step (Eq. 6)."""

    def forward(self, conditions: Conditions, inputs: UNetInputs) -> None:
        """Append the mask channels, shifted to [-1, 1] like the frames."""
        inputs.channels.append(conditions.masks * 2 - 1)  # (B, M, H, W)


class TextConditioner(nn.Module):
    """Text adapter v' = phi2(W2 phi1(W1 v)) (Sec. 3.2.2); the tokens are the cross-attention context, h + v'."""

    def __init__(self, model: ModelConfig, text_dim: int):
        super().__init__()
        width = model.text_context_dim
        self.adapter = nn.Sequential(nn.Linear(text_dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, conditions: Conditions, inputs: UNetInputs) -> None:
        """Set the cross-attention context, (B, T, width)."""
        inputs.encoder_hidden_states = self.adapter(conditions.text)  # (B, T, width)


class KnownFrameConditioner(nn.Module):
    """A channel that says whether the first frame is given clean: 1 where it is, 0 where it is not."""

    def forward(self, conditions: Conditions, inputs: UNetInputs) -> None:
        """Append the channel, (B, 1, H, W)."""
        frames = inputs.channels[0]
        channel = torch.zeros_like(frames[:, :1])  # (B, 1, H, W)
        inputs.channels.append(channel if conditions.known is None else channel + conditions.known[:, None, None, None])


class EmptyContext(nn.Module):
    """A learned token in the text's place, so that rows without text keep the same network."""

    def __init__(self, model: ModelConfig):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, model.text_context_dim))

    def forward(self, conditions: Conditions, inputs: UNetInputs) -> None:
        """Set the cross-attention context, (B, 1, width)."""
        inputs.encoder_hidden_states = self.token.expand(len(conditions.positions), -1, -1)  # (B, 1, width)


class FlowConditioner(nn.Module):
    """Flow adapter: convolutions down to the middle block's grid, added to its output (Sec. 3.2.1).

    The last convolution starts at zero, so that training begins from the network without flow.
    """

    def __init__(self, model: ModelConfig, image_size: int, flow_size: int):
        super().__init__()
        middle_size = image_size // model.unshuffle // 2 ** (len(model.block_channels) - 1)
        halvings = int(math.log2(max(1, flow_size // middle_size)))
        width = model.flow_adapter_channels
        layers: list[nn.Module] = [nn.Conv2d(2, width, 3, padding=1), nn.SiLU()]
        for _ in range(halvings):
            layers += [nn.Conv2d(width, width, 3, stride=2, padding=1), nn.SiLU()]
        self.adapter = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(middle_size))
        self.out = nn.Conv2d(width, model.block_channels[-1], 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.image_size = image_size

    def forward(self, conditions: Conditions, inputs: UNetInputs) -> None:
        """Set the residual of the middle block, (B, C, h, w)."""
        flow_pixels = conditions.flow * self.image_size  # (B, 2, h', w'), of order 1 between neighbouring slices
        inputs.mid_block_residual = self.out(self.adapter(flow_pixels))  # (B, C, h, w)


def build_conditioners(
    model: ModelConfig, image_size: int, flow_size: int, text_dim: int, known_frame: bool
) -> list[nn.Module]:
    """Return the conditioners of a row: position always; masks and text with DAG; flow and known frames where on."""
    conditioners: list[nn.Module] = [PositionConditioner(model)]
    if model.anatomical_guidance:
        conditioners += [MaskConditioner(), TextConditioner(model, text_dim)]
    else:
        conditioners += [EmptyContext(model)]
    if model.flow:
        conditioners += [FlowConditioner(model, image_size, flow_size)]
    if known_frame:
        conditioners += [KnownFrameConditioner()]
    return conditioners
