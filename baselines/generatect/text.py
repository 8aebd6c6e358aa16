"""Token embeddings of reports: T5 as published, or the open_clip tower that TRACE uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np

from baselines.generatect.config import GenerateCTExperiment
from trace_lightning.artifacts import digest, file_digest, read_json
from trace_lightning.data import text as open_clip_text
from trace_lightning.data.cache_folder import cache_folder, touch, writing
from trace_lightning.data.text import Embedding, Embeddings, write_embedding
from trace_lightning.errors import UserError

HUB_NAME = "google/t5-v1_1-base"
HUB_DIM = 768
MAX_TOKENS = 256
FORMAT = 1  # raise it when embeddings of T5 change their content or layout


def embed_prompts(prompts: Sequence[str], experiment: GenerateCTExperiment) -> Embeddings:
    """Return prompt -> embedding of the tower; each prompt is computed once and kept in the cache.

    Raises:
        UserError: the tower's weights cannot be had.
    """
    config, cache_dir = experiment.generatect, Path(experiment.run.cache_dir)
    if config.text == "open_clip":
        return open_clip_text.embed_prompts(prompts, experiment.text, cache_dir)
    made_from = {"format": FORMAT, **identity(experiment)}
    folder = cache_folder(cache_dir, "text", made_from)
    paths = {prompt: folder / f"{digest(prompt)}.safetensors" for prompt in dict.fromkeys(prompts)}
    if not all(path.is_file() for path in paths.values()):
        with writing(folder, made_from):
            for prompt in (prompt for prompt, path in paths.items() if not path.is_file()):
                write_embedding(paths[prompt], _embed_t5(prompt, config.t5_weights))
    touch(folder)
    return Embeddings(paths)


def read(embedding: Embedding) -> np.ndarray:
    """Return the tokens of a prompt, (T, C) float32: zero beyond its own, which marks them as not there.

    T is the tower's context: 256 for T5, 77 for most of open_clip.
    """
    num_read = min(embedding.num_tokens, embedding.context_length)
    return np.pad(embedding.tokens[:num_read], ((0, embedding.context_length - num_read), (0, 0)))


def text_dim(experiment: GenerateCTExperiment) -> int:
    """Return C without building the tower."""
    config = experiment.generatect
    if config.text == "open_clip":
        return open_clip_text.text_dim(experiment.text)
    return HUB_DIM if config.t5_weights == "hub" else read_json(Path(config.t5_weights) / "config.json")["d_model"]


def identity(experiment: GenerateCTExperiment) -> dict:
    """Return what the embeddings depend on: the tower, and the contents of T5's files where they are given."""
    config = experiment.generatect
    if config.text == "open_clip":
        return asdict(experiment.text)
    if config.t5_weights == "hub":
        return {"architecture": "t5", "pretrained": HUB_NAME}
    files = sorted(path for path in Path(config.t5_weights).glob("*") if path.is_file())
    return {"architecture": "t5", "pretrained": [_digest_once(path, path.stat().st_mtime_ns) for path in files]}


def describe(experiment: GenerateCTExperiment) -> str:
    """Return what the tower is, for the provenance of a volume."""
    config = experiment.generatect
    if config.text == "open_clip":
        return open_clip_text.describe(experiment.text)
    return f"T5 encoder, {HUB_NAME if config.t5_weights == 'hub' else f'weights {config.t5_weights}'}"


def _embed_t5(prompt: str, weights: str) -> Embedding:
    """Return the tokens (T, C) of a prompt, cut at 256 and not padded; T5 has no pooled embedding."""
    import torch

    tokenizer, encoder = _t5(HUB_NAME if weights == "hub" else weights)
    encoded = tokenizer(prompt, return_tensors="pt", max_length=MAX_TOKENS, truncation=True)
    with torch.no_grad():
        tokens = encoder(**encoded).last_hidden_state[0].float().numpy()
    return Embedding(tokens, np.empty(0, np.float32), len(tokenizer(prompt).input_ids), MAX_TOKENS)


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
