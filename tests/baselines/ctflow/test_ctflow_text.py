from pathlib import Path

import numpy as np
import pytest

from baselines.ctflow.text import embed, embedding_shape, full_prompt, read
from trace_lightning.anatomy.grid import Grid
from trace_lightning.data.text import embed_prompts
from trace_lightning.errors import UserError

PROMPTS = ["58 years old male: Effusion.", "61 years old female: Not given."]


def test_the_length_ends_the_prompt(small):
    grid = Grid((42, 8, 8), np.eye(4))
    assert full_prompt("Effusion.", grid, small.ctflow.prompt) == "Effusion. Length: 42 slices."
    small.ctflow.prompt.length = False
    assert full_prompt("Effusion.", grid, small.ctflow.prompt) == "Effusion."


def test_open_clip_gives_one_normalised_vector_or_all_tokens(small):
    config, found = small.ctflow.prompt, embed(small, PROMPTS)
    of_tower = embed_prompts(PROMPTS, small.text, Path(small.run.cache_dir))
    pooled = {prompt: read(found[prompt], config) for prompt in PROMPTS}
    for prompt in PROMPTS:
        assert pooled[prompt].shape == embedding_shape(small) == (1, 64)
        assert np.linalg.norm(pooled[prompt]) == pytest.approx(1, abs=1e-4)
        norm = np.linalg.norm(of_tower[prompt].pooled)
        assert pooled[prompt][0] * norm == pytest.approx(of_tower[prompt].pooled, abs=1e-4)
    assert np.abs(pooled[PROMPTS[0]] - pooled[PROMPTS[1]]).max() > 1e-3
    config.tokens = "all"
    for prompt in PROMPTS:
        tokens = read(found[prompt], config)
        assert tokens.shape == embedding_shape(small) == (77, 64)
        assert np.array_equal(tokens, of_tower[prompt].tokens)


def test_without_transformers_cxr_bert_says_what_to_do(small, monkeypatch):
    import sys

    small.ctflow.prompt.tower = "cxr_bert"
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs the package transformers.*tower=open_clip"):
        embed(small, PROMPTS)


def test_cxr_bert_from_a_folder(small, tmp_path):
    """A BERT of random weights, saved as the hub has it: CLS of the last hidden states, normalised."""
    transformers = pytest.importorskip("transformers", reason="needs the extra towers")
    import torch

    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=40, hidden_size=24, num_hidden_layers=1, num_attention_heads=2)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "effusion", "years", "old", "male"]
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words) + "\n")
    small.ctflow.prompt.tower, small.ctflow.prompt.weights = "cxr_bert", str(tmp_path / "bert")
    embedding = embed(small, PROMPTS)[PROMPTS[0]]
    assert not embedding.is_truncated
    found = read(embedding, small.ctflow.prompt)
    assert found.shape == embedding_shape(small) == (1, 24)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-4)
    small.ctflow.prompt.tokens = "all"
    states = read(embedding, small.ctflow.prompt)
    assert states.shape == embedding_shape(small) == (512, 24)
    assert states[0] / np.linalg.norm(states[0]) == pytest.approx(found[0], abs=1e-4)

    long = "effusion " * 600
    assert embed(small, [long])[long].is_truncated
    small.ctflow.prompt.weights = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="no BERT can be loaded"):
        embed(small, ["another prompt"])
