"""The conditional 2D UNet over frame pairs (Eq. 6): diffusers' UNet between a list of conditioners."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional

from trace_lightning.config import ModelConfig
from trace_lightning.models.conditioners import Conditions, UNetInputs, build_conditioners
from trace_lightning.models.mask_encoding import num_mask_channels


def num_frames(model: ModelConfig) -> int:
    """Return how many frames a sample has: two with PFM, one without."""
    return 2 if model.paired_frames else 1


def build_unet(model: ModelConfig, image_size: int, in_channels: int, out_channels: int) -> UNet2DConditionModel:
    """Build the six-level pixel UNet of the paper, or a smaller one by the same rule.

    Cross-attention to the text at `attention_levels` and in the middle block, plain residual blocks elsewhere.
    """
    levels = range(len(model.block_channels))
    return UNet2DConditionModel(
        sample_size=image_size,
        in_channels=in_channels,
        out_channels=out_channels,
        down_block_types=tuple(
            "CrossAttnDownBlock2D" if i in model.attention_levels else "DownBlock2D" for i in levels
        ),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=tuple(
            "CrossAttnUpBlock2D" if i in model.attention_levels else "UpBlock2D" for i in reversed(levels)
        ),
        block_out_channels=tuple(model.block_channels),
        layers_per_block=model.layers_per_block,
        norm_num_groups=model.norm_groups,
        attention_head_dim=model.attention_heads,  # diffusers' name, in which it takes the number of heads
        cross_attention_dim=model.text_context_dim,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=num_frames(model) * model.frame_embedding_dim,
    )


class Denoiser(nn.Module):
    """epsilon_theta(x_t, t | m_i, m_j, text, flow, E(r_i, r_j)): noisy frames in, prediction for the same frames out.

    Args:
        model: which conditions, how wide.
        image_size: H = W of a frame.
        flow_size: h = w of the flow.
        text_dim: width of the text tower's tokens.
        known_frame: whether it can be told that the first frame of a pair is clean.
    """

    def __init__(self, model: ModelConfig, image_size: int, flow_size: int, text_dim: int, known_frame: bool = False):
        super().__init__()
        self.num_frames = num_frames(model)
        self.unshuffle = model.unshuffle
        masks = num_mask_channels(self.num_frames, model.num_mask_classes, model.mask_encoding)
        channels = self.num_frames + (masks if model.anatomical_guidance else 0)  # 2c + 2 with PFM and DAG
        channels += known_frame
        self.conditioners = nn.ModuleList(build_conditioners(model, image_size, flow_size, text_dim, known_frame))
        self.unet = build_unet(
            model, image_size // self.unshuffle, channels * self.unshuffle**2, self.num_frames * self.unshuffle**2
        )
        # diffusers ignores the middle block's residual unless the skip connections' residuals are given too.
        self.no_skip_residuals = (0.0,) * sum(len(block.resnets) + 1 for block in self.unet.down_blocks)

    @property
    def first_level_values(self) -> int:
        """How many values the activations of one sample have at the first level."""
        return self.unet.config.block_out_channels[0] * self.unet.config.sample_size**2

    def forward(self, frames_BFHW: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """Predict noise, velocity or data (as trained) for noisy frames.

        Args:
            frames_BFHW: (B, F, H, W) noisy frames.
            timesteps: (B,) diffusion timesteps.
            conditions: of the same batch.

        Returns:
            (B, F, H, W).
        """
        inputs = UNetInputs(channels=[frames_BFHW])
        for conditioner in self.conditioners:
            conditioner(conditions, inputs)
        sample = torch.cat(inputs.channels, dim=1)  # (B, F + M, H, W)
        sample = functional.pixel_unshuffle(sample, self.unshuffle)  # (B, (F + M) u^2, H/u, W/u)
        residual = inputs.mid_block_residual
        prediction = self.unet(
            sample,
            timesteps,
            encoder_hidden_states=inputs.encoder_hidden_states,
            class_labels=inputs.class_labels,
            mid_block_additional_residual=residual,
            down_block_additional_residuals=None if residual is None else self.no_skip_residuals,
        ).sample  # (B, F u^2, H/u, W/u)
        return functional.pixel_shuffle(prediction, self.unshuffle)  # (B, F, H, W)
