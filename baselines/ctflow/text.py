"""The report as CTFlow's network reads it: one l2-normalised vector as published, or all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from baselines.ctflow.config import CTFlowExperiment, PromptConfig
from trace_lightning.anatomy.grid import Grid
from trace_lightning.artifacts import digest
from trace_lightning.data import text as open_clip_text
from trace_lightning.data.cache_folder import cache_folder, touch, writing
from trace_lightning.data.text import (
    Embedding,
    Embeddings,
    context_length,
    embed_prompts,
    pooled_dim,
    text_dim,
    write_embedding,
)
from trace_lightning.errors import UserError

CXR_BERT_TOKENS = 512
FORMAT = 1  # raise it when embeddings of CXR-BERT change their content or layout


def full_prompt(prompt: str, grid: Grid, config: PromptConfig) -> str:
    """Return the prompt, with the length of the scan where `prompt.length` says so."""
    return f"{prompt} Length: {grid.shape[0]} slices." if config.length else prompt


def embed(experiment: CTFlowExperiment, prompts: Sequence[str]) -> Embeddings:
    """Return prompt -> embedding of the tower; each prompt is computed once and cached.

    Raises:
        UserError: the tower's weights cannot be had.
    """
    config, cache_dir = experiment.ctflow.prompt, Path(experiment.run.cache_dir)
    if config.tower == "open_clip":
        return embed_prompts(prompts, experiment.text, cache_dir)
    return _embed_cxr_bert(prompts, config.weights, cache_dir)


def read(embedding: Embedding, config: PromptConfig) -> np.ndarray:
    """Return what the network is told of a prompt, (N, C) float32, as `prompt.tokens` says."""
    if config.tokens == "all":
        return embedding.tokens
    return embedding.pooled[None] / (np.linalg.norm(embedding.pooled) + 1e-6)


def embedding_shape(experiment: CTFlowExperiment) -> tuple[int, int]:
    """Return (N, C) of `read`."""
    config = experiment.ctflow.prompt
    if config.tower == "open_clip":
        text = experiment.text
        return (1, pooled_dim(text)) if config.tokens == "pooled" else (context_length(text), text_dim(text))
    return 1 if config.tokens == "pooled" else CXR_BERT_TOKENS, _bert(config.weights)[1].config.hidden_size


def describe(experiment: CTFlowExperiment) -> str:
    """Return what the tower is, for the provenance of a volume."""
    config = experiment.ctflow.prompt
    tower = (
        open_clip_text.describe(experiment.text)
        if config.tower == "open_clip"
        else f"CXR-BERT, weights {config.weights}"
    )
    return f"{tower}, {'pooled' if config.tokens == 'pooled' else 'all tokens'}"


def _embed_cxr_bert(prompts: Sequence[str], weights: str, cache_dir: Path) -> Embeddings:
    """Return the last hidden states of CXR-BERT; `pooled` is that of CLS."""
    identity = {"format": FORMAT, "architecture": "cxr_bert", "pretrained": weights}
    folder = cache_folder(cache_dir, "text", identity)
    paths = {prompt: folder / f"{digest(prompt)}.safetensors" for prompt in dict.fromkeys(prompts)}
    if not all(path.is_file() for path in paths.values()):
        with writing(folder, identity):
            for prompt in (prompt for prompt, path in paths.items() if not path.is_file()):
                write_embedding(paths[prompt], _read_by_cxr_bert(prompt, weights))
    touch(folder)
    return Embeddings(paths)


def _read_by_cxr_bert(prompt: str, weights: str) -> Embedding:
    import torch

    tokenizer, tower = _bert(weights)
    settings = {"padding": "max_length", "truncation": True, "max_length": CXR_BERT_TOKENS, "return_tensors": "pt"}
    with torch.no_grad():
        states = tower(**tokenizer(prompt, **settings)).last_hidden_state[0].float().numpy()
    return Embedding(states, states[0], len(tokenizer(prompt).input_ids), CXR_BERT_TOKENS)


@cache
def _bert(weights: str):
    """Return tokenizer and text tower of CXR-BERT, which CT-CLIP starts from."""
    try:
        from transformers import BertModel, BertTokenizer
    except ImportError:
        raise UserError(
            "ctflow.prompt.tower=cxr_bert needs the package transformers (pip install transformers); "
            "ctflow.prompt.tower=open_clip does without"
        ) from None
    try:
        tokenizer = BertTokenizer.from_pretrained(weights, do_lower_case=True)
        return tokenizer, BertModel.from_pretrained(weights, add_pooling_layer=False).eval()
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"ctflow.prompt.weights={weights}: no BERT can be loaded ({type(error).__name__}: {first}). Give a hub "
            "name with network access, the folder of a copy, or ctflow.prompt.tower=open_clip"
        ) from None
