import pickle

import numpy as np
import pytest
import torch
from torch import nn

from evaluation import checkpoint
from trace_lightning.errors import UserError


class Code:
    def __reduce__(self):
        return print, ("a weight file ran code",)


def test_weights_and_their_entry(tmp_path):
    torch.save({"state_dict": {"weight": torch.ones(2)}}, tmp_path / "w.pth")
    assert torch.equal(checkpoint.read(tmp_path / "w.pth", "state_dict")["weight"], torch.ones(2))
    with pytest.raises(UserError, match="no entry `model`"):
        checkpoint.read(tmp_path / "w.pth", "model")


def test_training_leftovers_in_numpy_do_not_hinder(tmp_path):
    optim = {"param_groups": [{"lr": np.float64(1e-4), "step": np.int64(3), "eps": np.float32(1e-8)}]}
    torch.save({"state_dict": {"weight": torch.ones(2)}, "optim": optim}, tmp_path / "w.pth")
    assert checkpoint.read(tmp_path / "w.pth", "state_dict")["weight"].shape == (2,)


def test_code_in_a_file_is_not_run(tmp_path, capsys):
    torch.save({"state_dict": Code()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: not a plain file of weights"):
        checkpoint.read(tmp_path / "w.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", pickle.dumps([1, 2]), b"PK\x03\x04 cut off"])
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"w\.pth: "):
        checkpoint.read(tmp_path / "w.pth", "state_dict")


def test_truncated_file(tmp_path):
    torch.save({"weight": torch.ones(10_000)}, tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"w\.pth: "):
        checkpoint.read(tmp_path / "w.pth")


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        checkpoint.read(tmp_path / "w.pth")


def test_names_and_shapes_must_agree(tmp_path):
    with pytest.raises(UserError, match=r"w\.pth: not the weights of Linear.*bias"):
        checkpoint.fill(nn.Linear(2, 2), {"weight": torch.zeros(2, 2)}, tmp_path / "w.pth", "cpu")


def test_a_filled_network_is_ready(tmp_path):
    network = checkpoint.fill(nn.Linear(2, 1), {"weight": torch.ones(1, 2), "bias": torch.ones(1)}, tmp_path, "cpu")
    assert not network.training
    assert network(torch.ones(2)).item() == 3
    assert not network.weight.requires_grad
