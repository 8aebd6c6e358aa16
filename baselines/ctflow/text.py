"""The report as CTFlow's network reads it: one l2-normalised vector as published, or all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from baselines.ctflow.config import CTFlowExperiment, PromptConfig
from trace_lightning.anatomy.grid import Grid
from trace_lightning.artifacts import digest, write_array
from trace_lightning.data.text import CONTEXT_TOKENS, embed_prompts, text_dim
from trace_lightning.errors import UserError

CXR_BERT_TOKENS = 512


def full_prompt(prompt: str, grid: Grid, config: PromptConfig) -> str:
    """Return the prompt, with the length of the scan where `prompt.length` says so."""
    return f"{prompt} Length: {grid.shape[0]} slices." if config.length else prompt


def embed(experiment: CTFlowExperiment, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """Return prompt -> (N, C) float32, as `prompt.tokens` says; each prompt is computed once and cached.

    Raises:
        UserError: the tower's weights cannot be had.
    """
    config, prompts = experiment.ctflow.prompt, list(dict.fromkeys(prompts))
    if config.tower == "cxr_bert":
        tokens = _embed_cxr_bert(prompts, config.weights, Path(experiment.run.cache_dir))
        pooled = {prompt: states[:1] for prompt, states in tokens.items()}  # CLS
    else:
        tokens = embed_prompts(prompts, experiment.text, Path(experiment.run.cache_dir))
        pooled = {prompt: states[_end_token(prompt)][None] for prompt, states in tokens.items()}
    if config.tokens == "all":
        return tokens
    return {prompt: state / (np.linalg.norm(state) + 1e-6) for prompt, state in pooled.items()}


def embedding_shape(experiment: CTFlowExperiment) -> tuple[int, int]:
    """Return (N, C) of `embed`."""
    config = experiment.ctflow.prompt
    bert = config.tower == "cxr_bert"
    count = {"pooled": 1, "all": CXR_BERT_TOKENS if bert else CONTEXT_TOKENS}[config.tokens]
    return count, _bert(config.weights)[1].config.hidden_size if bert else text_dim(experiment.text)


def _end_token(prompt: str) -> int:
    import open_clip

    return int(open_clip.tokenize([prompt])[0].argmax())  # the end token has the highest number


def _embed_cxr_bert(prompts: Sequence[str], weights: str, cache_dir: Path) -> dict[str, np.ndarray]:
    import torch

    folder = cache_dir / "text" / digest(["cxr_bert", weights])
    paths = {prompt: folder / f"{digest(prompt)}.npy" for prompt in prompts}
    for prompt in (prompt for prompt, path in paths.items() if not path.is_file()):
        tokenizer, tower = _bert(weights)
        inputs = tokenizer(
            prompt, padding="max_length", truncation=True, max_length=CXR_BERT_TOKENS, return_tensors="pt"
        )
        with torch.no_grad():
            write_array(paths[prompt], tower(**inputs).last_hidden_state[0].float().numpy())
    return {prompt: np.load(path) for prompt, path in paths.items()}


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
