"""Autoencoders of slices: their ranges and scaling, published weights by name and on real CT."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from baselines.ctflow.config import AutoencoderConfig, OwnAutoencoderConfig
from baselines.ctflow.models.autoencoder import (
    TINY_FILES,
    SliceAutoencoder,
    build_own,
    load_autoencoder,
    load_tiny,
)
from trace_lightning.errors import UserError

FLUX = {  # config.json of FLUX.1's VAE, but for the width
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [8, 8, 8, 8],
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 4,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def slices(count: int = 2, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def flux_folder(tmp_path_factory) -> Path:
    """Random weights in the layout and the names of FLUX's VAE."""
    folder = tmp_path_factory.mktemp("flux")
    torch.manual_seed(0)
    AutoencoderKL(**FLUX).save_pretrained(folder / "vae")
    return folder


def tiny_files(folder: Path, pooled: bool = True) -> None:
    """Write random weights in the published names of the tiny FLUX.2 VAE."""
    torch.manual_seed(0)

    def block(n: int, wide: bool) -> dict:
        found = {f"{n}.conv.{k}.weight": torch.randn(64, 64, 3, 3) / 30 for k in (0, 2, 4)}
        found |= {f"{n}.conv.{k}.bias": torch.zeros(64) for k in (0, 2, 4)}
        if wide:
            found |= {f"{n}.pool.0.weight": torch.randn(256, 64, 1, 1) / 8, f"{n}.pool.1.weight": torch.ones(256)}
            found |= {f"{n}.pool.1.bias": torch.zeros(256), f"{n}.pool.3.weight": torch.randn(64, 256, 1, 1) / 16}
        return found

    encoder = {"0.weight": torch.randn(64, 3, 3, 3), "0.bias": torch.zeros(64)}
    for n in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
        encoder |= block(n, pooled and n >= 11)
    encoder |= {f"{n}.weight": torch.randn(64, 64, 3, 3) / 24 for n in (2, 6, 10)}
    encoder |= {"14.weight": torch.randn(32, 64, 3, 3) / 24, "14.bias": torch.zeros(32)}
    decoder = {"1.weight": torch.randn(64, 32, 3, 3) / 17, "1.bias": torch.zeros(64)}
    for n in (3, 4, 5, 8, 9, 10, 13, 14, 15, 18):
        decoder |= block(n, pooled and n <= 5)
    decoder |= {f"{n}.weight": torch.randn(64, 64, 3, 3) / 24 for n in (7, 12, 17)}
    decoder |= {"19.weight": torch.randn(3, 64, 3, 3) / 24, "19.bias": torch.zeros(3)}
    for part, weights in (("encoder", encoder), ("decoder", decoder)):
        torch.save(weights, folder / TINY_FILES[part])


def test_flux_from_a_folder_is_scaled_as_published(flux_folder):
    autoencoder = load_autoencoder(AutoencoderConfig(weights=str(flux_folder)))
    direct = AutoencoderKL.from_pretrained(flux_folder / "vae", low_cpu_mem_usage=False).eval()
    with torch.no_grad():
        images = ((slices() + 1) / 2 * 255 / 306)[:, None].expand(-1, 3, -1, -1)  # white tissue at 255 / 306
        expected = (direct.encode(images).latent_dist.mode() - 0.1159) * 0.3611
        latents = autoencoder.encode(slices())
        assert latents.shape == (2, 16, 4, 4)
        assert torch.allclose(latents, expected, atol=1e-6)
        raw = direct.decode(expected / 0.3611 + 0.1159).sample.mean(dim=1)
        assert torch.allclose(autoencoder.decode(latents), raw * 306 / 255 * 2 - 1, atol=1e-4)


def test_the_end_marker_lies_beyond_the_whitest_tissue(flux_folder):
    autoencoder = load_autoencoder(AutoencoderConfig(weights=str(flux_folder)))
    _, white = autoencoder.ends(32)
    whitest = autoencoder.encode(torch.ones(1, 32, 32))[0]
    assert torch.equal(white, autoencoder.encode_images(torch.ones(1, 32, 32))[0])
    assert (white - whitest).abs().max() > 1e-3
    full = SliceAutoencoder(autoencoder.network, [-1.0, 1.0])
    assert torch.equal(full.ends(32)[1], full.encode(torch.ones(1, 32, 32))[0])  # no room left: the whitest tissue


def test_slices_do_not_depend_on_their_neighbours(flux_folder):
    autoencoder = load_autoencoder(AutoencoderConfig(weights=str(flux_folder)))
    together = autoencoder.encode(slices(3))
    assert torch.allclose(together[1:2], autoencoder.encode(slices(3)[1:2]), atol=1e-5)


def test_missing_weights_are_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"autoencoder\.weights.*autoencoder\.source=own"):
        load_autoencoder(AutoencoderConfig(weights=str(tmp_path)))
    with pytest.raises(UserError, match="taef2_encoder"):
        load_autoencoder(AutoencoderConfig(source="tiny", weights=str(tmp_path)))


def test_tiny_loads_strictly_from_its_published_names(tmp_path):
    tiny_files(tmp_path)
    autoencoder = load_autoencoder(AutoencoderConfig(source="tiny", weights=str(tmp_path), image_range=[-1.0, 1.0]))
    stored = torch.load(tmp_path / TINY_FILES["decoder"], weights_only=True)
    own = autoencoder.network.decoder.layers.state_dict()
    assert len(own) == len(stored)
    assert all(torch.equal(own[f"{int(n) - 1}.{rest}"], stored[f"{n}.{rest}"]) for n, rest in split_names(stored))
    latents = autoencoder.encode(slices())
    assert latents.shape == (2, 32, 4, 4)
    assert autoencoder.decode(latents).shape == (2, 32, 32)


def split_names(weights: dict) -> list[tuple[str, str]]:
    return [tuple(name.split(".", 1)) for name in weights]


def test_weights_of_another_network_are_listed(tmp_path):
    tiny_files(tmp_path)
    path = tmp_path / TINY_FILES["encoder"]
    weights = torch.load(path, weights_only=True)
    weights["14.weight"] = weights["14.weight"][:4]
    del weights["3.conv.0.bias"]
    weights["3.extra"] = torch.zeros(1)
    torch.save(weights, path)
    with pytest.raises(
        UserError, match=r"missing: 3\.conv\.0\.bias; not expected: 3\.extra; another shape: 14\.weight"
    ):
        load_tiny(tmp_path)


def test_the_own_autoencoder_has_the_size_asked_for():
    network = SliceAutoencoder(
        build_own(OwnAutoencoderConfig(block_channels=[8, 16, 16], latent_channels=4)).eval(), [-1.0, 1.0]
    )
    assert network.encode(slices()).shape == (2, 4, 8, 8)
    assert network.factor == 4


def real_slices(folder: Path, count: int) -> torch.Tensor:
    from trace_lightning.artifacts import read_volume

    volume = read_volume(folder / "dataset/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz")
    chosen = np.linspace(8, len(volume.hu) - 9, count).astype(int)
    return torch.from_numpy(np.clip(volume.hu[chosen], -1000, 1000) / 1000).float()


@pytest.fixture
def tiny_weights() -> str:
    folder = Path(os.environ.get("TRACE_WEIGHTS", "")) / "taef2"
    if "TRACE_WEIGHTS" not in os.environ or not folder.is_dir():
        pytest.skip("set TRACE_WEIGHTS to a folder that holds taef2/taef2_encoder.pth")
    return str(folder)


@pytest.fixture
def real_ct() -> Path:
    folder = Path(os.environ.get("TRACE_DATA", "")) / "ct_rate_mini"
    if "TRACE_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("set TRACE_DATA to a folder that holds ct_rate_mini")
    return folder


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.real_ct
def test_the_published_range_costs_eleven_decibels_on_real_ct(tiny_weights, real_ct):
    """[-1, 1] uses all of the autoencoder's range: 41 dB; the published [0, 255/306] less than half of it: 30 dB."""
    images, found = real_slices(real_ct, 2), {}
    for image_range in ([-1.0, 1.0], [0.0, 255 / 306]):
        config = AutoencoderConfig(source="tiny", weights=tiny_weights, image_range=image_range)
        autoencoder = load_autoencoder(config)
        rebuilt = autoencoder.decode(autoencoder.encode(images)).clamp(-1, 1)
        found[image_range[0]] = float(10 * torch.log10(4 / (rebuilt - images).square().mean()))
    assert found[-1.0] > 40
    assert found[0.0] == pytest.approx(found[-1.0] - 11, abs=1.5)
