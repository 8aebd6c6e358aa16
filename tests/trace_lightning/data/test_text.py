import json

import numpy as np
import pytest

from trace_lightning.config import TextConfig
from trace_lightning.data.text import describe, embed_prompts, num_truncated, text_dim
from trace_lightning.errors import UserError

TINY = TextConfig("tiny", "seeded")


@pytest.fixture
def small_clip(tmp_path):
    """A registered open_clip model with random weights saved in open_clip's own format."""
    import open_clip
    import torch

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    (tmp_path / "small-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "small-clip.json")
    torch.manual_seed(3)
    model = open_clip.create_model("small-clip")
    torch.save(model.state_dict(), tmp_path / "small-clip.pt")
    return model.eval(), TextConfig("small-clip", str(tmp_path / "small-clip.pt"))


def test_tiny_tower_tells_prompts_apart_and_is_the_same_every_time(tmp_path):
    first = embed_prompts(["54 years old male: Nodule.", "30 years old female: Normal."], TINY, tmp_path / "a")
    again = embed_prompts(["54 years old male: Nodule."], TINY, tmp_path / "b")
    male, female = first.values()
    assert male.shape == (77, text_dim(TINY))
    assert np.array_equal(male, again["54 years old male: Nodule."])
    assert np.abs(male - female).max() > 0.1


def test_another_seed_is_another_tower(tmp_path):
    other = embed_prompts(["x"], TextConfig("tiny", "seeded", seed=1), tmp_path)["x"]
    assert not np.allclose(other, embed_prompts(["x"], TINY, tmp_path)["x"])


def test_embeddings_come_from_the_cache_the_second_time(tmp_path, monkeypatch):
    embed_prompts(["x"], TINY, tmp_path)
    monkeypatch.setattr("trace_lightning.data.text._tower", lambda config: pytest.fail("the tower ran again"))
    embed_prompts(["x"], TINY, tmp_path)


def test_weights_from_a_file_equal_open_clips_own_text_tower(small_clip, tmp_path):
    import open_clip
    import torch

    model, config = small_clip
    tokens = embed_prompts(["a chest"], config, tmp_path)["a chest"]
    assert tokens.shape == (77, text_dim(config)) == (77, 32)
    ids = open_clip.tokenize(["a chest"])
    with torch.no_grad():
        hidden = model.ln_final(
            model.transformer(model.token_embedding(ids) + model.positional_embedding, attn_mask=model.attn_mask)
        )
    np.testing.assert_allclose(tokens, hidden[0].numpy(), atol=1e-5)
    assert "not pretrained" not in describe(config)
    assert "not pretrained" in describe(TINY)


@pytest.mark.parametrize(
    "config", [TextConfig("tiny", "openai"), TextConfig("no-such-model", "openai"), TextConfig("RN50", "no-such-tag")]
)
def test_missing_weights_are_an_error_never_random_ones(config, tmp_path):
    with pytest.raises(UserError, match=r"text\."):
        embed_prompts(["x"], config, tmp_path)


def test_prompts_beyond_the_context_are_counted():
    assert num_truncated(["short", "word " * 100]) == 1
    assert num_truncated(["word " * 75, "word " * 76, "e" * 75, "short", "naïve"]) == 1
