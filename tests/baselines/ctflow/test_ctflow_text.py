import numpy as np
import pytest

from baselines.ctflow.text import embed, embedding_shape, full_prompt
from trace_lightning.anatomy.grid import Grid
from trace_lightning.errors import UserError

PROMPTS = ["58 years old male: Effusion.", "61 years old female: Not given."]


def test_the_length_ends_the_prompt(small):
    grid = Grid((42, 8, 8), np.eye(4))
    assert full_prompt("Effusion.", grid, small.ctflow.prompt) == "Effusion. Length: 42 slices."
    small.ctflow.prompt.length = False
    assert full_prompt("Effusion.", grid, small.ctflow.prompt) == "Effusion."


def test_open_clip_gives_one_normalised_vector_or_all_tokens(small):
    pooled = embed(small, PROMPTS)
    small.ctflow.prompt.tokens = "all"
    tokens = embed(small, PROMPTS)
    for prompt in PROMPTS:
        assert tokens[prompt].shape == embedding_shape(small) == (77, 64)
        assert pooled[prompt].shape == (1, 64)
        assert np.linalg.norm(pooled[prompt]) == pytest.approx(1, abs=1e-4)
        cosines = (tokens[prompt] @ pooled[prompt][0]) / np.linalg.norm(tokens[prompt], axis=1)
        assert cosines.max() == pytest.approx(1, abs=1e-5)  # it is one of the tokens, not the first
        assert cosines.argmax() > 5
    assert np.abs(pooled[PROMPTS[0]] - pooled[PROMPTS[1]]).max() > 1e-3


def test_without_transformers_cxr_bert_says_what_to_do(small, monkeypatch):
    import sys

    small.ctflow.prompt.tower = "cxr_bert"
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs the package transformers.*tower=open_clip"):
        embed(small, PROMPTS)


def test_cxr_bert_from_a_folder(small, tmp_path):
    """A BERT of random weights, saved as the hub has it: CLS of the last hidden states, normalised."""
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=40, hidden_size=24, num_hidden_layers=1, num_attention_heads=2)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "effusion", "years", "old", "male"]
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words) + "\n")
    small.ctflow.prompt.tower, small.ctflow.prompt.weights = "cxr_bert", str(tmp_path / "bert")
    found = embed(small, PROMPTS)[PROMPTS[0]]
    assert found.shape == embedding_shape(small) == (1, 24)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-4)
    small.ctflow.prompt.tokens = "all"
    states = embed(small, PROMPTS)[PROMPTS[0]]
    assert states.shape == (512, 24)
    assert states[0] / np.linalg.norm(states[0]) == pytest.approx(found[0], abs=1e-4)

    small.ctflow.prompt.weights = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="no BERT can be loaded"):
        embed(small, ["another prompt"])
