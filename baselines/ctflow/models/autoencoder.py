"""Slices to latents and back: diffusers' AutoencoderKL (FLUX, or one trained here) or the tiny FLUX.2 VAE.

`SliceAutoencoder` hides what they differ in: value range, channels, scaling of the latents.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import Tensor, nn
from torch.nn import functional

from baselines.ctflow.config import AutoencoderConfig, OwnAutoencoderConfig
from trace_lightning.errors import UserError

TINY_CHANNELS, TINY_FILES = 32, {"encoder": "taef2_encoder.pth", "decoder": "taef2_decoder.pth"}
WHITE = 1.0  # of an image in [-1, 1]; as published also the mark of the end
START_LOG_VARIANCE = -6.0  # of the own latents: noise as large as they are would have to be unlearnt first


class SliceAutoencoder(nn.Module):
    """A frozen autoencoder of slices.

    Args:
        network: a diffusers autoencoder of images in [-1, 1].
        image_range: what -1 and 1 of a slice become before the network sees it.
    """

    def __init__(self, network: AutoencoderKL | AutoencoderTiny, image_range: list[float]):
        super().__init__()
        self.network, (self.low, self.high) = network, image_range
        self.channels = network.config.latent_channels
        self.image_channels = network.config.in_channels  # three times grey, or the pixels of a patch
        self.unshuffle = math.isqrt(self.image_channels)
        self.factor = self.unshuffle * 2 ** (len(network.config.get("block_out_channels") or (0,) * 4) - 1)
        self.shift = network.config.get("shift_factor") or 0.0
        self.scale = network.config.scaling_factor

    @torch.no_grad()
    def encode(self, slices_NHW: Tensor) -> Tensor:
        """Return the latents (N, c, H / factor, W / factor), shifted and scaled, of slices in [-1, 1]."""
        return self.encode_images((slices_NHW + 1) / 2 * (self.high - self.low) + self.low)

    @torch.no_grad()
    def decode(self, latents_NCHW: Tensor) -> Tensor:
        """Return slices (N, H, W), in [-1, 1] but for the autoencoder's errors and for white, which may lie above."""
        decoded = self.network.decode(latents_NCHW / self.scale + self.shift).sample
        images = functional.pixel_shuffle(decoded, self.unshuffle).mean(dim=1)  # grey
        return (images - self.low) / (self.high - self.low) * 2 - 1

    @torch.no_grad()
    def encode_images(self, images_NHW: Tensor) -> Tensor:
        """Return the latents of images in the network's own range [-1, 1]."""
        images = functional.pixel_unshuffle(images_NHW[:, None], self.unshuffle)
        encoded = self.network.encode(images.expand(-1, self.image_channels, -1, -1))
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return (latents - self.shift) * self.scale

    def ends(self, size: int) -> tuple[Tensor, Tensor]:
        """Return the latents (c, h, w) of a slice of air, as before a volume, and of a white one, as behind it."""
        air = self.encode(torch.full((1, size, size), -1.0, device=self.device))
        white = self.encode_images(torch.full((1, size, size), WHITE, device=self.device))
        return air[0], white[0]

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.network.device


def load_autoencoder(config: AutoencoderConfig, own: Path | None = None) -> SliceAutoencoder:
    """Load the autoencoder that the configuration names.

    Args:
        config: source and weights.
        own: folder of the one trained here, for `source: own`.

    Raises:
        UserError: the weights cannot be had, or do not fit; random ones never stand in for them.
    """
    loaders = {
        "kl": lambda: _load_kl(config.weights, config.subfolder),
        "tiny": lambda: load_tiny(Path(config.weights)),
        "own": lambda: _load_kl(str(own), ""),
    }
    network = loaders[config.source]()
    return SliceAutoencoder(network.eval().requires_grad_(False), config.image_range)


def build_own(config: OwnAutoencoderConfig) -> AutoencoderKL:
    """Build the small autoencoder of grey slices, untrained."""
    levels = len(config.block_channels)
    network = AutoencoderKL(
        in_channels=config.unshuffle**2,
        out_channels=config.unshuffle**2,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.block_channels),
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,  # set after training
        shift_factor=0.0,
    )
    nn.init.constant_(network.encoder.conv_out.bias[config.latent_channels :], START_LOG_VARIANCE)
    return network


def load_tiny(folder: Path) -> AutoencoderTiny:
    """Load the tiny FLUX.2 VAE (madebyollin/taesd) from its published files.

    diffusers' AutoencoderTiny has its layers under other names, and lacks the pooled middle blocks, added here.

    Raises:
        UserError: a file is absent or holds another network.
    """
    network = AutoencoderTiny(latent_channels=TINY_CHANNELS)
    for part, file in TINY_FILES.items():
        path = folder / file
        if not path.is_file():
            raise UserError(f"{path}: no such file; ctflow.autoencoder.weights is a folder with {file}")
        # In the published decoder, layer 0 is the clamp that diffusers keeps outside its list of layers.
        offset = 1 if part == "decoder" else 0
        weights = {}
        for name, value in torch.load(path, map_location="cpu", weights_only=True).items():
            layer, _, rest = name.partition(".")
            weights[f"{int(layer) - offset}.{rest}"] = value
        layers = getattr(network, part).layers
        for layer in {name.partition(".")[0] for name in weights if ".pool." in name}:
            layers[int(layer)] = PooledBlock(64)
        load_strictly(layers, weights, path)
    return network


class PooledBlock(AutoencoderTinyBlock):
    """The middle block of the tiny FLUX.2 VAE: statistics of the whole image (a group norm) join before the block."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, "relu")
        wide = 4 * channels
        self.pool = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.GroupNorm(4, wide),
            nn.ReLU(),
            nn.Conv2d(wide, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H, W)."""
        return super().forward(x + self.pool(x))


def load_strictly(network: nn.Module, weights: dict[str, Tensor], where: Path | str) -> None:
    """Load weights that must fit a network exactly.

    Raises:
        UserError: lists what is missing, what is not expected, and what has another shape.
    """
    own = network.state_dict()
    problems = {
        "missing": sorted(own.keys() - weights.keys()),
        "not expected": sorted(weights.keys() - own.keys()),
        "another shape": sorted(
            f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
            for name in own.keys() & weights.keys()
            if own[name].shape != weights[name].shape
        ),
    }
    if any(problems.values()):
        found = "; ".join(f"{what}: {_listed(names)}" for what, names in problems.items() if names)
        raise UserError(f"{where}: the weights of another network ({found})")
    network.load_state_dict(weights)


def _load_kl(weights: str, subfolder: str) -> AutoencoderKL:
    inside = Path(weights) / subfolder
    name, below = (str(inside), None) if inside.is_dir() else (weights, None if Path(weights).is_dir() else subfolder)
    try:
        return AutoencoderKL.from_pretrained(name, subfolder=below, low_cpu_mem_usage=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"ctflow.autoencoder.weights={weights}: no AutoencoderKL can be loaded ({type(error).__name__}: {first}). "
            "Give a hub name with network access (FLUX.1 asks for an account), a folder in diffusers' format, or "
            "ctflow.autoencoder.source=own for a small one trained here"
        ) from None


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
