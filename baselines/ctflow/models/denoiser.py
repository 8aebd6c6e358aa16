"""The network of the flow: STDiT, and where asked for what it is told of the clip's place and an end head."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from baselines.ctflow.config import STDiTConfig
from baselines.ctflow.models.stdit import STDiT

NUM_GEOMETRY, GEOMETRY_DIM = 4, 64  # numbers of `latents.geometry`, and sinusoids of each


@dataclass(frozen=True)
class Conditions:
    """What a clip is conditioned on.

    Attributes:
        previous: (B, c, T, h, w) latents of the clip before.
        text: (B, N, C) tokens of the report.
        geometry: (B, 4), see `latents.geometry`; read by networks with `model.geometry` only.
        keep_text: (B,) bool, false for the empty prompt; None keeps all.
    """

    previous: Tensor
    text: Tensor
    geometry: Tensor
    keep_text: Tensor | None = None

    def without_text(self) -> Conditions:
        """Return the same with empty prompts."""
        return replace(self, keep_text=torch.zeros(len(self.text), dtype=torch.bool, device=self.text.device))


class Denoiser(nn.Module):
    """Velocity of a noisy clip (or its data, as `flow.prediction` says), and whether each slice lies beyond the end.

    The second with `model.end_head` only.

    Args:
        model: sizes and switches.
        latent_channels: c.
        latent_size: h = w.
        text_shape: (N, C) of the report's tokens.
    """

    def __init__(self, model: STDiTConfig, latent_channels: int, latent_size: int, text_shape: tuple[int, int]):
        super().__init__()
        num_tokens, text_dim = text_shape
        self.stdit = STDiT(model, latent_channels, latent_size, text_dim, num_tokens)
        self.geometry = GeometryEmbedder(model.hidden_size) if model.geometry else None
        self.end_head = EndHead(model) if model.end_head else None
        self.mirrored = model.mirror_previous

    def forward(self, noisy_BCTHW: Tensor, t_B: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor | None]:
        """Predict for latents (B, c, T, h, w) at times t in [0, 1].

        Returns:
            The prediction (B, c, T, h, w), and the logits (B, T) of lying beyond the end, or None without that head.
        """
        geometry = None if self.geometry is None else self.geometry(conditions.geometry)
        previous = conditions.previous.flip(2) if self.mirrored else conditions.previous
        predicted, tokens = self.stdit(noisy_BCTHW, t_B, previous, conditions.text, conditions.keep_text, geometry)
        return predicted, None if self.end_head is None else self.end_head(tokens, conditions.geometry)


class GeometryEmbedder(nn.Module):
    """Place, length and spacing (B, 4) to a vector (B, C) that joins the time embedding; zero at the start."""

    def __init__(self, dim: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(NUM_GEOMETRY * GEOMETRY_DIM, dim), nn.SiLU(), nn.Linear(dim, dim))
        nn.init.zeros_(self.mlp[2].weight)
        nn.init.zeros_(self.mlp[2].bias)

    def forward(self, geometry_BG: Tensor) -> Tensor:
        """Return (B, C)."""
        waves = get_timestep_embedding(geometry_BG.flatten(), GEOMETRY_DIM).view(len(geometry_BG), -1)
        return self.mlp(waves.to(self.mlp[0].weight.dtype))


class EndHead(nn.Module):
    """Tokens (B, frames, places, C), averaged over a frame's places, to logits (B, T) of lying beyond the end.

    With `model.geometry` each slice is also told how far it is from the length wanted.
    """

    def __init__(self, model: STDiTConfig):
        super().__init__()
        self.norm = nn.LayerNorm(model.hidden_size)
        self.linear = nn.Linear(model.hidden_size, model.patch_size[0])
        self.left = (
            nn.Sequential(nn.Linear(GEOMETRY_DIM, GEOMETRY_DIM), nn.SiLU(), nn.Linear(GEOMETRY_DIM, 1))
            if model.geometry
            else None
        )

    def forward(self, tokens_BFSC: Tensor, geometry_BG: Tensor) -> Tensor:
        """Return the logits."""
        logits = self.linear(self.norm(tokens_BFSC.mean(dim=2))).flatten(1)  # (B, T)
        if self.left is None:
            return logits
        left = geometry_BG[:, 3:] - torch.arange(logits.shape[1], device=logits.device)  # (B, T) slices
        waves = get_timestep_embedding(left.flatten(), GEOMETRY_DIM).unflatten(0, logits.shape)
        return logits + self.left(waves.to(logits.dtype)).squeeze(-1)
