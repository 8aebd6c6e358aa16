from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest

from baselines.generatect.config import GenerateCTConfig, GenerateCTExperiment, coarse_size, validate_generatect
from baselines.generatect.text import embed_prompts, read, text_dim
from experiments.load import leaves, load, profiles
from trace_lightning.errors import UserError


def experiment(config: GenerateCTConfig | None = None) -> GenerateCTExperiment:
    made = GenerateCTExperiment(name="generatect", generatect=config or GenerateCTConfig())
    made.data.size = 512
    return made


def test_as_published_nothing_is_set():
    size = ["data.size=512", "generatect.super_resolution.factor=4"]
    made = load("generatect_as_published", "ct_rate", ["data.root=/ct", *size])
    assert made.experiment.generatect == GenerateCTConfig()
    assert coarse_size(made.experiment) == 128


@pytest.mark.parametrize("profile", profiles())
def test_the_presets_differ_in_the_defects_alone_at_every_scale(profile):
    """Which they are is said by the mended preset's own file; the scale is the profile's and the same for both."""
    root = ["data.root=/ct"] if "ct_rate" in profile else []
    names = ("generatect_as_published", "generatect")
    published, mended = (leaves(load(name, profile, root).experiment) for name in names)
    differing = {key for key in mended if mended[key] != published[key]}
    assert differing - {"name", "title"} == {
        "generatect.squeeze",
        "generatect.tokenizer.mixed_axes",
        "generatect.tokenizer.causal_time",
        "generatect.tokenizer.revive_below",
        "generatect.tokenizer.perceptual_learns",
        "generatect.transformer.max_tokens",
        "generatect.transformer.train.text_dropout",
        "generatect.super_resolution.cross_attention_everywhere",
        "generatect.sample.slice_noise",
    }


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_slices", 200, r"generatect.num_slices=200 is not 1 \+ k x"),
        ("tokenizer.patch", 12, "data.size=512 is not divisible by factor x patch = 48"),
        ("tokenizer.codebook_size", 0, "generatect.tokenizer.codebook_size=0 is below 1"),
        ("transformer.max_tokens", 6463, "max_tokens=6463 is below the 6464 tokens"),
        ("super_resolution.width_factors", [], "width_factors names a level"),
        ("super_resolution.coarse_noise_max", 0.05, "no more noise than in training"),
        ("super_resolution.width", 12, "width=12 is not divisible by 8"),
        ("transformer.train.text_dropout", 1.5, r"text_dropout is a share in \[0, 1\]"),
        ("tokenizer.train.min_lr", 1.0, "0 < min_lr <= lr"),
        ("sample.threshold_quantile", 0.0, "threshold_quantile must lie in"),
        ("sample.token_steps", 0, "generatect.sample.token_steps=0 is below 1"),
    ],
)
def test_impossible_values_are_refused_by_name(key, value, message):
    made = experiment()
    *path, last = key.split(".")
    group = made.generatect
    for name in path:
        group = getattr(group, name)
    setattr(group, last, value)
    with pytest.raises(UserError, match=message):
        validate_generatect(made)


def test_volumes_of_different_lengths_cannot_share_a_batch():
    made = experiment()
    made.generatect.transformer.train.batch_size = 2
    validate_generatect(made)
    made.generatect.squeeze = False
    with pytest.raises(UserError, match=r"transformer.train.batch_size > 1 needs .* squeeze=false"):
        validate_generatect(made)


def test_t5_is_read_from_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra towers")
    import tokenizers

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "no": 3, "effusion": 4}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(tmp_path / "t5")
    sizes = {"vocab_size": 5, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    transformers.T5EncoderModel(transformers.T5Config(**sizes)).save_pretrained(tmp_path / "t5")
    made = experiment()
    made.generatect.t5_weights, made.run.cache_dir = str(tmp_path / "t5"), str(tmp_path / "cache")
    assert text_dim(made) == 16
    embedded = embed_prompts(["no effusion", "effusion"], made)
    for prompt, num_tokens in (("no effusion", 2), ("effusion", 1)):
        tokens = read(embedded[prompt])
        assert tokens.shape == (256, 16)
        assert np.any(tokens != 0, axis=1).tolist() == [True] * num_tokens + [False] * (256 - num_tokens)
    again = embed_prompts(["effusion"], made)
    assert np.array_equal(read(again["effusion"]), read(embedded["effusion"]))
    long = "effusion " * 300
    cut = embed_prompts([long], made)[long]
    assert cut.is_truncated
    assert np.all(np.any(read(cut) != 0, axis=1))


def test_missing_t5_weights_are_an_error(tmp_path, monkeypatch):
    made = experiment()
    made.generatect.t5_weights, made.run.cache_dir = str(tmp_path / "nowhere"), str(tmp_path / "cache")
    with pytest.raises(UserError, match=r"generatect.text=open_clip"):
        embed_prompts(["no effusion"], made)


def test_text_can_come_from_the_open_clip_tower(tmp_path):
    made = deepcopy(experiment())
    made.generatect.text, made.run.cache_dir = "open_clip", str(tmp_path)
    made.text.architecture, made.text.pretrained = "tiny", "seeded"
    tokens = read(embed_prompts(["no effusion"], made)["no effusion"])
    assert tokens.shape == (77, text_dim(made))
    assert np.any(tokens != 0, axis=1).tolist() == [True] * 5 + [False] * 72  # start, no, eff, usion, end
