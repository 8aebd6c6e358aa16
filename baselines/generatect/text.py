"""Token embeddings of reports: T5 as published, or the open_clip tower that TRACE uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np

from baselines.generatect.config import GenerateCTExperiment
from trace_lightning.artifacts import digest, file_digest, read_json, write_array
from trace_lightning.data import text as open_clip_text
from trace_lightning.errors import UserError

HUB_NAME = "google/t5-v1_1-base"
HUB_DIM = 768
MAX_TOKENS = 256


def embed_prompts(prompts: Sequence[str], experiment: GenerateCTExperiment) -> dict[str, np.ndarray]:
    """Return prompt -> (T, C) float32 token embeddings; tokens that do not count are zero.

    T is 256 for T5 and 77 for open_clip. Each prompt is computed once and kept in the cache.

    Raises:
        UserError: the tower's weights cannot be had.
    """
    cache_dir = Path(experiment.run.cache_dir)
    if experiment.generatect.text == "open_clip":
        return open_clip_text.embed_prompts(prompts, experiment.text, cache_dir)
    folder = cache_dir / "text" / digest(identity(experiment))
    embedded = {}
    for prompt in dict.fromkeys(prompts):
        path = folder / f"{digest(prompt)}.npy"
        if not path.is_file():
            write_array(path, _embed_t5(prompt, experiment.generatect.t5_weights))
        words = np.load(path)  # (T, C) without padding
        embedded[prompt] = np.pad(words, ((0, MAX_TOKENS - len(words)), (0, 0)))
    return embedded


def text_dim(experiment: GenerateCTExperiment) -> int:
    """Return C without building the tower."""
    config = experiment.generatect
    if config.text == "open_clip":
        return open_clip_text.text_dim(experiment.text)
    return HUB_DIM if config.t5_weights == "hub" else read_json(Path(config.t5_weights) / "config.json")["d_model"]


def identity(experiment: GenerateCTExperiment) -> list:
    """Return what the embeddings depend on: the tower, and the contents of T5's files where they are given."""
    config = experiment.generatect
    if config.text == "open_clip":
        return ["open_clip", asdict(experiment.text)]
    if config.t5_weights == "hub":
        return ["t5", HUB_NAME]
    files = sorted(path for path in Path(config.t5_weights).glob("*") if path.is_file())
    return ["t5", *(_digest_once(path, path.stat().st_mtime_ns) for path in files)]


def describe(experiment: GenerateCTExperiment) -> str:
    """Return what the tower is, for the provenance of a volume."""
    config = experiment.generatect
    if config.text == "open_clip":
        return open_clip_text.describe(experiment.text)
    return f"T5 encoder, {HUB_NAME if config.t5_weights == 'hub' else f'weights {config.t5_weights}'}"


def _embed_t5(prompt: str, weights: str) -> np.ndarray:
    """Return (T, C) float32 of a prompt, cut at 256 tokens."""
    import torch

    tokenizer, encoder = _t5(HUB_NAME if weights == "hub" else weights)
    encoded = tokenizer(prompt, return_tensors="pt", max_length=MAX_TOKENS, truncation=True)
    with torch.no_grad():
        return encoder(**encoded).last_hidden_state[0].float().numpy()


@cache
def _digest_once(path: Path, changed: int) -> str:
    """Return the digest of a file's bytes; a gigabyte is read once a process."""
    return file_digest(path)


@cache
def _t5(weights: str):
    try:
        from transformers import AutoTokenizer, T5EncoderModel
    except ImportError:
        raise UserError(
            "generatect.text=t5 needs the packages transformers and sentencepiece: pip install transformers "
            "sentencepiece; or set generatect.text=open_clip"
        ) from None
    try:
        return AutoTokenizer.from_pretrained(weights), T5EncoderModel.from_pretrained(weights).eval()
    except (OSError, ValueError) as error:
        raise UserError(
            f"generatect.t5_weights={weights}: T5 cannot be loaded ({error}). Give a folder with the model and its "
            f"tokenizer, network access for t5_weights=hub, or set generatect.text=open_clip"
        ) from None
