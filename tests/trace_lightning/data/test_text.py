import json
import re

import numpy as np
import pytest

from trace_lightning.config import TextConfig
from trace_lightning.data.text import (
    context_length,
    describe,
    embed_prompts,
    num_truncated,
    pooled_dim,
    text_dim,
)
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
    assert male.tokens.shape == (context_length(TINY), text_dim(TINY)) == (77, 64)
    assert male.pooled.shape == (pooled_dim(TINY),) == (64,)
    for name in ("tokens", "pooled"):
        assert np.array_equal(getattr(male, name), getattr(again["54 years old male: Nodule."], name))
        assert np.abs(getattr(male, name) - getattr(female, name)).max() > 0.01


def test_another_seed_is_another_tower(tmp_path):
    other = embed_prompts(["x"], TextConfig("tiny", "seeded", seed=1), tmp_path)["x"].tokens
    assert not np.allclose(other, embed_prompts(["x"], TINY, tmp_path)["x"].tokens)


def test_embeddings_come_from_the_cache_the_second_time(tmp_path, monkeypatch):
    embed_prompts(["x"], TINY, tmp_path)
    monkeypatch.setattr("trace_lightning.data.text._tower", lambda config: pytest.fail("the tower ran again"))
    embed_prompts(["x"], TINY, tmp_path)


def test_weights_from_a_file_equal_open_clips_own_text_tower(small_clip, tmp_path):
    import open_clip
    import torch

    model, config = small_clip
    tokens, pooled, *_ = embed_prompts(["a chest"], config, tmp_path)["a chest"]
    assert tokens.shape == (77, text_dim(config)) == (77, 32)
    assert pooled.shape == (pooled_dim(config),) == (16,)
    ids = open_clip.tokenize(["a chest"])
    with torch.no_grad():
        hidden = model.ln_final(
            model.transformer(model.token_embedding(ids) + model.positional_embedding, attn_mask=model.attn_mask)
        )
        encoded = model.encode_text(ids)
    np.testing.assert_allclose(tokens, hidden[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(pooled, encoded[0].numpy(), atol=1e-5)
    assert "not pretrained" not in describe(config)
    assert "not pretrained" in describe(TINY)


@pytest.mark.parametrize(
    "config", [TextConfig("tiny", "openai"), TextConfig("no-such-model", "openai"), TextConfig("RN50", "no-such-tag")]
)
def test_missing_weights_are_an_error_never_random_ones(config, tmp_path):
    with pytest.raises(UserError, match=r"text\."):
        embed_prompts(["x"], config, tmp_path)


def test_what_lies_beyond_the_context_is_cut_and_counted(tmp_path):
    """75 words fit between start and end; the 76th is not read, the end token is."""
    words = "word " * 75
    prompts = ["short", words, words + "word", words + "nodule", "e" * 75, "naïve", words + "!"]
    embedded = embed_prompts(prompts, TINY, tmp_path)
    assert [embedded[p].num_tokens for p in prompts[:4]] == [3, 77, 78, 80]
    assert [embedded[p].is_truncated for p in prompts] == [False, False, True, True, False, False, True]
    assert num_truncated(embedded.values()) == 3
    assert num_truncated(embed_prompts(prompts, TINY, tmp_path).values()) == 3  # from the cache
    for cut in (words + "word", words + "nodule"):  # the end token stands where the 76th word would
        assert np.array_equal(embedded[cut].tokens, embedded[words].tokens)
        assert np.array_equal(embedded[cut].pooled, embedded[words].pooled)
    assert not np.allclose(embedded["short"].pooled, embedded[words].pooled)


def test_the_context_is_that_of_the_tower(tmp_path):
    """CLIPA reads 32 tokens, CoCa 76, ViT-B-32 77."""
    assert [context_length(TextConfig(name)) for name in ("ViT-L-14-CLIPA", "coca_ViT-B-32", "ViT-B-32")] == [
        32,
        76,
        77,
    ]
    assert [pooled_dim(TextConfig(name)) for name in ("ViT-L-14-quickgelu", "ViT-B-32")] == [768, 512]


@pytest.fixture
def small_short(tmp_path):
    """Seven tokens of context; weights and description in a folder, as `local-dir:` wants them."""
    import open_clip
    import torch

    folder = tmp_path / "short"
    folder.mkdir()
    settings = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 7, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
        "custom_text": True,
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": {}}))
    open_clip.add_model_config(folder / "open_clip_config.json")
    torch.manual_seed(3)
    model = open_clip.CustomTextCLIP(**{k: v for k, v in settings.items() if k != "custom_text"})
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return model.eval(), folder


def test_a_model_in_a_folder_brings_weights_and_context(small_short, tmp_path):
    import torch

    model, folder = small_short
    config = TextConfig(f"local-dir:{folder}", "own")
    found = embed_prompts(["one two three four five", "one two three four five six"], config, tmp_path)
    assert [e.tokens.shape for e in found.values()] == [(7, 32)] * 2
    assert [(e.num_tokens, e.is_truncated) for e in found.values()] == [(7, False), (8, True)]
    assert (context_length(config), text_dim(config), pooled_dim(config)) == (7, 32, 16)
    import open_clip

    with torch.no_grad():
        pooled = model.encode_text(open_clip.tokenize(["one two three four five"], context_length=7))
    np.testing.assert_allclose(found["one two three four five"].pooled, pooled[0].numpy(), atol=1e-5)
    (folder / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        embed_prompts(["x"], config, tmp_path)
    with pytest.raises(UserError, match=r"text.pretrained=own"):
        embed_prompts(["x"], TextConfig(f"local-dir:{folder}", "openai"), tmp_path)
    with pytest.raises(UserError, match=r"text.pretrained=own"):
        embed_prompts(["x"], TextConfig("ViT-B-32", "own"), tmp_path)


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "three", "four", "five", "!", "un", "##known"]


@pytest.mark.parametrize(
    ("settings", "fits", "too_long"),
    [
        ({}, "one two three four five", "one two three four five!"),
        ({"tokenizer_kwargs": {"strip_sep_token": True}}, "one two unknown five", "one two three unknown five"),
    ],
    ids=["BERT", "without its end token"],
)
def test_a_tokenizer_of_transformers_counts_its_own_tokens(tmp_path, settings, fits, too_long):
    """[CLS] and [SEP] take two of seven places; `unknown` is two word pieces."""
    transformers = pytest.importorskip("transformers", reason="needs the extra towers")
    import open_clip
    import torch

    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    shape = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64}
    transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **shape).save_pretrained(folder)
    text = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "context_length": 7}
    text |= {"hf_proj_type": "linear", "hf_pooler_type": "cls_last_hidden_state_pooler", **settings}
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    described = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": described, "preprocess_cfg": {}}))
    torch.manual_seed(3)
    model = open_clip.CustomTextCLIP(16, vision, {**text, "hf_model_pretrained": False})
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")

    config = TextConfig(f"local-dir:{folder}", "own")
    found = embed_prompts([fits, too_long], config, tmp_path)
    assert [(e.num_tokens, e.is_truncated) for e in found.values()] == [(7, False), (8, True)]
    assert found[fits].tokens.shape == (7, text_dim(config)) == (7, 32)
    assert found[fits].pooled.shape == (pooled_dim(config),) == (16,)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match=re.escape("needs a package that is not installed")):
        embed_prompts(["x"], TextConfig("ViT-B-16-SigLIP", "seeded"), tmp_path)
