"""Vector quantisation by cosine similarity, the codebook a moving average of what falls on each code.

Upstream takes it from vector-quantize-pytorch 1.1.2, whose names and results these are. Later versions of the library
have other names, and all of them revive unused codes by the global generator, which no resumed training can repeat.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Codebook(nn.Module):
    """The codes and how often each is used.

    Args:
        dim: D.
        num_codes: size of the codebook.
        decay: of the moving averages.
    """

    def __init__(self, dim: int, num_codes: int, decay: float):
        super().__init__()
        self.decay = decay
        codes = nn.init.kaiming_uniform_(torch.empty(1, num_codes, dim))
        self.register_buffer("initted", torch.ones(1))
        self.register_buffer("cluster_size", torch.zeros(1, num_codes))
        self.register_buffer("embed", functional.normalize(codes, dim=-1))

    @torch.no_grad()
    def nearest(self, x: Tensor) -> Tensor:
        """Return (..., L) indices of the codes nearest in angle to x (..., L, D)."""
        codes = functional.normalize(self.embed[0], dim=-1)
        return (functional.normalize(x.float(), dim=-1) @ codes.t()).argmax(-1)

    @torch.no_grad()
    def follow(self, x: Tensor, indices: Tensor, generator: torch.Generator | None, revive_below: float) -> None:
        """Move the codes towards the mean direction of what fell on them.

        Args:
            x: (N, D) vectors.
            indices: (N,) their codes.
            generator: draws the vectors that replace dead codes.
            revive_below: codes used less often than this (moving average of counts) are replaced; 0: none.
        """
        directions = functional.normalize(x.float(), dim=-1)
        codes = functional.normalize(self.embed[0], dim=-1)
        counts = torch.bincount(indices, minlength=len(codes)).float()
        self.cluster_size[0].lerp_(counts, 1 - self.decay)
        sums = torch.zeros_like(codes).index_add_(0, indices, directions)
        means = functional.normalize(sums / counts.clamp(min=1)[:, None], dim=-1)
        self.embed[0].lerp_(torch.where(counts[:, None] == 0, codes, means), 1 - self.decay)
        dead = self.cluster_size[0] < revive_below
        if revive_below > 0 and dead.any():
            drawn = torch.randint(len(directions), (int(dead.sum()),), generator=generator, device=x.device)
            self.embed[0, dead] = directions[drawn]
            self.cluster_size[0, dead] = 1.0  # as if used once: time to be found


class VectorQuantize(nn.Module):
    """Replaces vectors by their nearest codes; gradients pass straight through.

    Args:
        dim: D.
        num_codes: size of the codebook.
        decay: of the codebook's moving averages.
        revive_below: see `Codebook.follow`.
    """

    def __init__(self, dim: int, num_codes: int, decay: float = 0.8, revive_below: float = 0.0):
        super().__init__()
        self.revive_below = revive_below
        self._codebook = Codebook(dim, num_codes, decay)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes, indices and the commitment loss; in training the codebook follows the input.

        Args:
            x: (..., D).
            generator: of the replacement of dead codes.

        Returns:
            (..., D) codes, (...) indices, scalar mean squared distance between input and code.
        """
        indices = self._codebook.nearest(x)
        codes = self.codes(indices).to(x.dtype)
        if self.training:
            self._codebook.follow(x.flatten(0, -2), indices.flatten(), generator, self.revive_below)
        commitment = functional.mse_loss(codes, x)
        return x + (codes - x).detach(), indices, commitment

    def codes(self, indices: Tensor) -> Tensor:
        """Return (..., D) codes of (...) indices."""
        return self._codebook.embed[0][indices]
