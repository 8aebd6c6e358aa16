"""What CT-ViT's slices are judged by besides their pixels: a slice discriminator and VGG-16 features."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from baselines.generatect.models.attention import Attention
from trace_lightning.errors import UserError

WIDEST = 512


class DiscriminatorBlock(nn.Module):
    """Two convolutions beside a projection, halving the image by pixel-unshuffle."""

    def __init__(self, in_channels: int, channels: int, downsample: bool):
        super().__init__()
        self.conv_res = nn.Conv2d(in_channels, channels, 1, stride=2 if downsample else 1)
        self.net = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(0.1),
        )
        self.downsample = (
            nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(channels * 4, channels, 1)) if downsample else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, channels, h / 2, w / 2), or of the input's size without `downsample`."""
        return (self.downsample(self.net(x)) + self.conv_res(x)) / math.sqrt(2)


class Discriminator(nn.Module):
    """Judges single slices.

    Args:
        dim: a quarter of the first block's channels.
        image_size: h = w.
        attention_size: the image size at whose block attention is added.
    """

    def __init__(self, dim: int, image_size: int, attention_size: int = 16):
        super().__init__()
        halvings = int(math.log2(image_size) - 2)
        channels = [1] + [min(dim * 4 * 2**i, WIDEST) for i in range(halvings + 1)]
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(before, after, downsample=i < halvings)
            for i, (before, after) in enumerate(pairwise(channels))
        )
        self.attn_blocks = nn.ModuleList(
            Attention(after, head_dim=64, heads=8) if image_size >> i == attention_size else None
            for i, after in enumerate(channels[1:])
        )
        last = channels[-1]
        self.to_logits = nn.Sequential(
            nn.Conv2d(last, last, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Flatten(),
            nn.Linear(last * (image_size >> halvings) ** 2, 1),
            nn.Flatten(0),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return (B,) logits of (B, 1, h, w), high for real."""
        x = images
        for block, attention in zip(self.blocks, self.attn_blocks, strict=True):
            x = block(x)
            if attention is not None:
                tokens = x.flatten(2).transpose(1, 2)  # (B, h w, C)
                with sdpa_kernel(SDPBackend.MATH):  # the one that the gradient penalty can differentiate twice
                    x = (attention(tokens) + tokens).transpose(1, 2).reshape(x.shape)
        return self.to_logits(x)


def hinge_loss(real: Tensor, generated: Tensor) -> Tensor:
    """Return the discriminator's hinge loss of logits."""
    return (functional.relu(1 + generated) + functional.relu(1 - real)).mean()


def gradient_penalty(images: Tensor, logits: Tensor) -> Tensor:
    """Return the mean squared distance from 1 of the norm of the logits' gradient at `images`."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def adaptive_weight(reference: Tensor, adversarial: Tensor, last_layer: Tensor, largest: float) -> Tensor:
    """Return the weight that gives the adversarial loss as much gradient at `last_layer` as the reference has."""
    norms = [torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm() for loss in (reference, adversarial)]
    return (norms[0] / (norms[1] + 1e-8)).clamp(max=largest).detach()


class VGGFeatures(nn.Module):
    """The last hidden layer (4096) of ImageNet's VGG-16.

    Args:
        weights: `hub` (torchvision's own) or the path of a state dict in torchvision's names.
    """

    def __init__(self, weights: str):
        super().__init__()
        self.net = load_vgg16(weights)
        self.net.classifier = self.net.classifier[:-2]

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 4096) of (B, 1, h, w) in [-1, 1], which enter as three equal channels, as published."""
        return self.net(images.expand(-1, 3, -1, -1))


def load_vgg16(weights: str) -> nn.Module:
    """Return torchvision's VGG-16 with pretrained weights.

    Raises:
        UserError: they cannot be had; random ones never stand in for them.
    """
    from torchvision.models import VGG16_Weights, vgg16

    advice = "set tokenizer.perceptual=false, or perceptual_weights=FILE (a state dict in torchvision's names)"
    try:
        if weights == "hub":
            return vgg16(weights=VGG16_Weights.IMAGENET1K_V1)
        state = torch.load(weights, map_location="cpu", weights_only=True)
        network = vgg16(weights=None, init_weights=False)
        network.load_state_dict(state)
        return network
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"tokenizer.perceptual_weights={weights}: VGG-16 cannot be loaded ({error}); {advice}"
        ) from None
