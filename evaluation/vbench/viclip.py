"""ViCLIP-L/14, a video and a text tower in one space, under the names of its published weights.

Wang et al., InternVid: A Large-scale Video-Text Dataset for Multimodal Understanding and Generation, ICLR 2024. CLIP's
ViT-L/14 with a position for each of 8 frames, all of whose patches attend to each other, and CLIP's text tower cut to
32 tokens; both are open_clip's transformers.
"""

from __future__ import annotations

import torch
from open_clip.transformer import QuickGELU, TextTransformer, Transformer
from torch import nn

SIDE, PATCH = 224, 14  # pixels
FRAMES = 8
CONTEXT = 32  # tokens
OUTPUTS = 768


class VideoTower(nn.Module):
    """Eight frames to one feature."""

    def __init__(self, width: int, layers: int, heads: int):
        super().__init__()
        self.conv1 = nn.Conv3d(3, width, (1, PATCH, PATCH), (1, PATCH, PATCH), bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn((SIDE // PATCH) ** 2 + 1, width) * width**-0.5)
        self.temporal_positional_embedding = nn.Parameter(torch.zeros(1, FRAMES, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, act_layer=QuickGELU)
        self.proj = nn.Parameter(torch.randn(width, OUTPUTS) * width**-0.5)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Map (B, 8, 3, 224, 224), normalised as CLIP's, to (B, 768)."""
        patches = self.conv1(frames.transpose(1, 2)).flatten(3).permute(0, 2, 3, 1)  # (B, 8, patches, width)
        patches = patches + self.positional_embedding[1:] + self.temporal_positional_embedding[:, :, None]
        whole = (self.class_embedding + self.positional_embedding[0]).expand(len(frames), 1, -1)
        tokens = self.ln_pre(torch.cat([whole, patches.flatten(1, 2)], dim=1))
        return self.ln_post(self.transformer(tokens)[:, 0]) @ self.proj


class ViClip(nn.Module):
    """Both towers; the sizes are those of ViT-L/14."""

    def __init__(self, video_width: int = 1024, video_layers: int = 24, text_width: int = 768, text_layers: int = 12):
        super().__init__()
        self.vision_encoder = VideoTower(video_width, video_layers, video_width // 64)
        self.text_encoder = TextTransformer(
            CONTEXT,
            width=text_width,
            heads=text_width // 64,
            layers=text_layers,
            output_dim=OUTPUTS,
            act_layer=QuickGELU,
        )
        self.temp = nn.Parameter(torch.tensor(0.01))  # training's temperature: in the file, not in the score
