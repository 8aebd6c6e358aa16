"""Random inputs of a row's network, to measure it with."""

from __future__ import annotations

import torch
from torch import Tensor

from trace_lightning.config import Experiment
from trace_lightning.data.text import context_length, text_dim
from trace_lightning.models.conditioners import Conditions
from trace_lightning.models.denoiser import num_frames
from trace_lightning.models.mask_encoding import num_mask_channels


def random_inputs(experiment: Experiment, batch: int, device: torch.device) -> tuple[Tensor, Tensor, Conditions]:
    """Return frames (B, F, H, W), timesteps (B,) and conditions as the network of `experiment` takes them."""
    model, size = experiment.model, experiment.data.size
    frames = num_frames(model)
    small = size // experiment.data.flow_stride
    guided = model.anatomical_guidance
    channels = num_mask_channels(frames, model.num_mask_classes, model.mask_encoding)
    tokens = context_length(experiment.text), text_dim(experiment.text)
    conditions = Conditions(
        positions=torch.rand(batch, frames, device=device),
        masks=torch.rand(batch, channels, size, size, device=device) if guided else None,
        text=torch.randn(batch, *tokens, device=device) if guided else None,
        flow=torch.zeros(batch, 2, small, small, device=device) if model.flow else None,
    )
    return torch.randn(batch, frames, size, size, device=device), torch.full((batch,), 500, device=device), conditions
