"""Which files are VISTA3D's weights, and what is said of those that are not."""

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch

from trace_lightning.anatomy import vista3d
from trace_lightning.anatomy.vista3d import Vista3D
from trace_lightning.errors import UserError


def wrapped(weights: dict, *, under: str | None = None, prefix: str = "") -> dict:
    named = {prefix + name: value for name, value in weights.items()}
    return named if under is None else {under: named, "epoch": 3}


@pytest.mark.parametrize(
    ("under", "prefix"), [(None, ""), ("model", ""), ("state_dict", ""), ("state_dict", "module.")]
)
def test_checkpoints_are_read_as_they_are_saved(network, checkpoint, tmp_path, under, prefix):
    torch.save(wrapped(network.state_dict(), under=under, prefix=prefix), tmp_path / "saved.pt")
    loaded = Vista3D.load(tmp_path / "saved.pt", window=32).network
    assert not loaded.training
    expected = network.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert {tensor.device.type for tensor in (*loaded.parameters(), *loaded.buffers())} == {"cpu"}


def test_half_precision_checkpoints_are_computed_in_single(network, tmp_path):
    torch.save({name: value.half() for name, value in network.state_dict().items()}, tmp_path / "half.pt")
    loaded = Vista3D.load(tmp_path / "half.pt", window=32).network
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}


def save_page(path, network):
    path.write_text("\n<!DOCTYPE html><html><title>Sign in</title></html>")


def save_text(path, network):
    path.write_text("not weights")


def save_code(path, network):
    class Malice:
        def __reduce__(self):
            return os.mkdir, (str(path.parent / "ran"),)

    path.write_bytes(pickle.dumps(Malice()))


def save_truncated(path, network):
    torch.save(network.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])


def save_whole_module(path, network):
    torch.save(network, path)


def save_renamed(path, network):
    torch.save({name.replace(".mlp.linear", ".mlp.lin"): value for name, value in network.state_dict().items()}, path)


def save_without_embeddings(path, network):
    weights = dict(network.state_dict())
    del weights["class_head.class_embeddings.weight"]
    torch.save(weights, path)


def save_with_wider_layer(path, network):
    weights = dict(network.state_dict())
    weights["class_head.mlp.0.bias"] = torch.zeros(9)
    torch.save(weights, path)


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda path, network: None, "no such file. Download https://.*non-commercial"),
        (save_page, "a web page, not the file"),
        (save_text, "cannot be read as PyTorch weights"),
        (save_code, "cannot be read as PyTorch weights"),
        (save_truncated, "cannot be read as PyTorch weights"),
        (save_whole_module, "cannot be read as PyTorch weights"),
        (lambda path, network: torch.save([1, 2], path), "holds a list without named weights"),
        (lambda path, network: torch.save({"epoch": 3}, path), "holds a dict without named weights"),
        (lambda path, network: torch.save({}, path), "not the layers of MONAI's vista3d132: .* missing"),
        (save_renamed, r"8 missing \(.*mlp\.linear1.*\); 8 unknown \(.*mlp\.lin1.*research repository"),
        (save_without_embeddings, r"missing \(class_head\.class_embeddings\.weight\); .*of another shape"),
        (save_with_wider_layer, r"vista3d132: 1 of another shape \(class_head\.mlp\.0\.bias\)"),
    ],
)
def test_what_is_no_checkpoint_of_vista3d_is_named(network, tmp_path, save, message):
    path = tmp_path / "weights.pt"
    save(path, network)
    with pytest.raises(UserError, match=f"(?s)VISTA3D weights {path}: .*{message}"):
        Vista3D.load(path)
    assert not (tmp_path / "ran").exists()


def test_a_file_by_nvidias_name_has_nvidias_checksum(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "model_vista3d.pt"
    path.write_bytes(checkpoint.read_bytes())
    with pytest.raises(UserError, match=r"md5 .*, published is 6ce45a8edde4400c5d28d5e74d7b61d5"):
        Vista3D.load(path)
    monkeypatch.setitem(vista3d.PUBLISHED_MD5, path.name, hashlib.md5(path.read_bytes()).hexdigest())
    Vista3D.load(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # PyTorch reads it without a word
    path.write_bytes(content)
    with pytest.raises(UserError, match="incomplete or damaged"):
        Vista3D.load(path)


def hub_with(path: Path, folder: Path, name: str) -> Path:
    """Lay a file out as the hub's cache does."""
    blob, snapshot = folder / "blobs" / name, folder / "snapshots" / "1" / "model.pt"
    blob.parent.mkdir(parents=True)
    snapshot.parent.mkdir(parents=True)
    blob.write_bytes(path.read_bytes())
    snapshot.symlink_to(blob)
    return snapshot


def test_the_hubs_file_is_asked_for_by_name_and_checked(checkpoint, tmp_path, monkeypatch):
    asked = []
    right = hub_with(checkpoint, tmp_path / "right", hashlib.sha256(checkpoint.read_bytes()).hexdigest())
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args: asked.append(args) or str(right))
    assert Vista3D.load().network.state_dict().keys() == Vista3D.load(checkpoint).network.state_dict().keys()
    assert asked == [("nvidia/NV-Segment-CT", "vista3d_pretrained_model/model.pt")]
    wrong = hub_with(checkpoint, tmp_path / "wrong", "0" * 64)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args: str(wrong))
    with pytest.raises(UserError, match=f"sha256 .*, published is {'0' * 64}"):
        Vista3D.load()


def test_without_the_hub_there_are_no_weights(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*args):
        raise LocalEntryNotFoundError("no network\nand more")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(UserError, match=r"`hub`: .* of nvidia/NV-Segment-CT cannot be had \(no network\)\. Download"):
        Vista3D.load()
