"""The token transformer: masked tokens of a volume and a report in, logits of every token out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baselines.generatect.config import TransformerConfig
from baselines.generatect.models.attention import ContinuousPositionBias, Transformer


class MaskGit(nn.Module):
    """Bidirectional transformer over the token grid with cross-attention to the report.

    Args:
        config: sizes.
        num_codes: of the tokenizer; the id `num_codes` stands for a masked token.
        text_dim: width of the text tower's tokens.
    """

    def __init__(self, config: TransformerConfig, num_codes: int, text_dim: int):
        super().__init__()
        self.config, self.mask_id = config, num_codes
        self.token_emb = nn.Embedding(num_codes + 1, config.dim)
        self.pos_emb = nn.Embedding(config.max_tokens, config.dim)
        self.continuous_pos_bias = ContinuousPositionBias(config.head_dim, config.heads, num_axes=3)
        self.transformer = Transformer(
            config.dim, config.depth, config.heads, config.head_dim, causal_peg=False, context_dim=text_dim
        )
        self.to_logits = nn.Linear(config.dim, num_codes)

    def forward(self, indices: Tensor, text: Tensor, keep: Tensor) -> Tensor:
        """Return logits.

        Args:
            indices: (B, T, H, W) token ids, `mask_id` where masked.
            text: (B, C, text_dim) text tokens.
            keep: (B, C) bool, the text tokens that count; none of them is the empty report.

        Returns:
            (B, T, H, W, num_codes).
        """
        places = torch.arange(indices[0].numel(), device=indices.device)
        x = self.token_emb(indices) + self.pos_emb(places).reshape(*indices.shape[1:], -1)  # (B, T, H, W, D)
        share = self.config.embedding_gradient
        x = x * share + x.detach() * (1 - share)
        bias = self.continuous_pos_bias(*indices.shape[1:])
        return self.to_logits(self.transformer(x, "all", bias=bias, context=text, keep=keep))


def text_keep(text: Tensor) -> Tensor:
    """Return (B, C) bool: padding is where all features of a text token are zero."""
    return (text != 0).any(-1)
