"""The three published files: random weights in their names and shapes go in and come out again."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import generatect_reference as reference
import pytest
import torch

from baselines.generatect.config import PHASES, GenerateCTConfig
from baselines.generatect.generation import load_generator
from baselines.generatect.models.ctvit import CTViT
from baselines.generatect.models.discriminator import Discriminator
from baselines.generatect.models.maskgit import MaskGit
from baselines.generatect.models.super_resolution import SuperResolutionUNet
from baselines.generatect.module import build_network
from baselines.generatect.published import DISCRIMINATOR, load_part
from baselines.generatect.training import train
from trace_lightning.artifacts import read_json
from trace_lightning.data import cache
from trace_lightning.errors import UserError
from trace_lightning.fitting import RECORD

UPSTREAM = json.loads((Path(__file__).parent / "upstream.json").read_text())


def prefixed(network: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in network.state_dict().items()}


def transformer_file(tokenizer, transformer) -> dict:
    return prefixed(tokenizer, "ctvit.") | prefixed(transformer, "maskgit.")


def ema_entry(unet, averaged) -> dict:
    """The moving averages of the trainer's two UNets, the first of which is a placeholder."""
    entry = {}
    for index, online, average in ((0, None, None), (1, unet, averaged)):
        entry |= {f"{index}.initted": torch.tensor([True]), f"{index}.step": torch.tensor([7])}
        for name, network in (("online_model", online), ("ema_model", average)):
            empty = {f"{index}.{name}.dummy_parameter": torch.zeros(1)}
            entry |= empty if network is None else prefixed(network, f"{index}.{name}.")
    return entry


@pytest.fixture
def files(tiny, tmp_path) -> dict[str, Path]:
    """Random weights in the published files' form, with the tiny sizes."""
    tokenizer, transformer, unet = (reference.fill(build_network(phase, tiny, 64)) for phase in PHASES)
    online = build_network("super_resolution", tiny, 64)
    discriminator = Discriminator(tiny.generatect.tokenizer.discriminator_dim, 16)
    contents = {
        "tokenizer": tokenizer.state_dict()
        | prefixed(discriminator, "discr.")
        | {"vgg.features.0.bias": torch.ones(64)},
        "transformer": transformer_file(tokenizer, transformer),
        "super_resolution": {
            "model": {"unets.0.dummy_parameter": torch.zeros(1)} | prefixed(online, "unets.1."),
            "steps": torch.tensor([0, 5]),
            "optim1": torch.optim.Adam(online.parameters()).state_dict(),
            "ema": ema_entry(online, unet),
            "time_elapsed": 1.5,
        },
    }
    paths = {phase: tmp_path / f"{phase}.pt" for phase in PHASES}
    for phase, content in contents.items():
        torch.save(content, paths[phase])
    return paths


def test_files_have_the_published_layouts_at_the_published_sizes():
    config = GenerateCTConfig()
    tokenizer = CTViT(config.tokenizer, 128)
    transformer = MaskGit(config.transformer, config.tokenizer.codebook_size, 768)
    unet = SuperResolutionUNet(config.super_resolution, 768)
    assert reference.layout_digest(transformer_file(tokenizer, transformer)) == UPSTREAM["transformer_file"]["layout"]
    assert reference.layout_digest(ema_entry(unet, unet)) == UPSTREAM["super_resolution_file"]["layout"]


def published(experiment, files: dict[str, Path]):
    """Return the experiment with published weights in the place of its trainings."""
    experiment = deepcopy(experiment)
    for phase in PHASES:
        getattr(experiment.generatect, phase).published = str(files[phase])
    return experiment


def silent(done: int, total: int, note: str = "") -> None:
    """Report nothing."""


def test_published_files_take_the_place_of_trainings(tiny, files, tmp_path):
    experiment = published(tiny, files)
    train(experiment, tmp_path / "training", silent)
    generator = load_generator(experiment, tmp_path / "training")
    for phase in PHASES:
        expected = reference.fill(build_network(phase, tiny, 64)).state_dict()
        state = getattr(generator, phase).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in state.items())
    record = read_json(tmp_path / "training" / RECORD)
    assert record["phases"]["tokenizer"]["published"]["file"] == "tokenizer.pt"
    (made,) = generator.generate(cache.test_cases(experiment)[:1], [0], silent)
    assert made.volume.hu.std() > 0


def test_the_discriminator_comes_with_the_tokenizer(tiny, files):
    network = Discriminator(tiny.generatect.tokenizer.discriminator_dim, 16)
    load_part(network, files["tokenizer"], DISCRIMINATOR)
    stored = torch.load(files["tokenizer"], weights_only=True)
    assert all(torch.equal(value, stored[f"discr.{name}"]) for name, value in network.state_dict().items())


def test_what_does_not_fit_is_named(tiny, files, tmp_path):
    def refused(phase: str, change) -> str:
        content = torch.load(files[phase], weights_only=True)
        change(content)
        torch.save(content, tmp_path / "changed.pt")
        with pytest.raises(UserError) as caught:
            train(published(tiny, files | {phase: tmp_path / "changed.pt"}), tmp_path / "training", silent)
        return str(caught.value)

    def wider(content: dict) -> None:
        content["to_pixels.0.bias"] = torch.zeros(3)

    told = refused("tokenizer", lambda content: content.pop("vq._codebook.embed"))
    assert "changed.pt" in told
    assert "1 missing: vq._codebook.embed" in told
    assert "1 of another shape: to_pixels.0.bias (3,) (here (128,))" in refused("tokenizer", wider)
    told = refused("transformer", lambda content: content.update({"maskgit.extra": torch.zeros(1)}))
    assert "1 unexpected: maskgit.extra" in told
    told = refused("transformer", lambda content: content.update({"critic.weight": torch.zeros(1)}))
    assert "1 unexpected: critic.weight" in told
    assert "its entry 'ema' is not a state dict" in refused("super_resolution", lambda content: content.pop("ema"))
    assert not (tmp_path / "training" / "model.safetensors").exists()


def test_files_that_are_none_are_named(tiny, files, tmp_path):
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    for path, message in ((tmp_path / "broken.pt", "cannot be read"), (tmp_path / "absent.pt", "no such file")):
        with pytest.raises(UserError, match=message):
            train(published(tiny, files | {"transformer": path}), tmp_path / "training", silent)
