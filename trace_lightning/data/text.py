"""Token embeddings of prompts from a frozen open_clip text tower, cached per prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np

from trace_lightning.artifacts import digest, write_array
from trace_lightning.config import TextConfig
from trace_lightning.errors import UserError

CONTEXT_TOKENS = 77  # of CLIP's text towers, start and end included
TINY = {"width": 64, "heads": 4, "layers": 2, "output_dim": 64}


class PromptTokens(Mapping[str, np.ndarray]):
    """prompt -> (T, C) float32 token embeddings, each read from its file when it is asked for.

    At 240 kB a prompt (ViT-L/14), holding those of many volumes would cost more memory than all else in a loader.
    """

    def __init__(self, paths: Mapping[str, Path]):
        self.paths = dict(paths)

    def __getitem__(self, prompt: str) -> np.ndarray:
        return np.load(self.paths[prompt])

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


def embed_prompts(prompts: Sequence[str], config: TextConfig, cache_dir: Path) -> PromptTokens:
    """Return prompt -> (T, C) float32 token embeddings; each prompt is computed once and kept in `cache_dir`.

    Raises:
        UserError: the tower's weights cannot be had; random ones never stand in for them.
    """
    folder = Path(cache_dir) / "text" / digest([asdict(config), weights_stamp(config)])
    paths = {prompt: folder / f"{digest(prompt)}.npy" for prompt in dict.fromkeys(prompts)}
    missing = [prompt for prompt, path in paths.items() if not path.is_file()]
    for prompt, tokens in zip(missing, _embed(missing, config) if missing else [], strict=True):
        write_array(paths[prompt], tokens)
    return PromptTokens(paths)


def text_dim(config: TextConfig) -> int:
    """Return C, the width of the tower's tokens, without building it."""
    if config.architecture == "tiny":
        return TINY["width"]
    import open_clip

    settings = open_clip.get_model_config(config.architecture)
    if settings is None:
        raise UserError(f"text.architecture={config.architecture}: not a model of open_clip, nor 'tiny'")
    return settings["text_cfg"]["width"]


def describe(config: TextConfig) -> str:
    """Return what the tower is, for the provenance of a volume."""
    if config.pretrained == "seeded":
        return f"open_clip text tower {config.architecture}, random weights of seed {config.seed} (not pretrained)"
    return f"open_clip text tower {config.architecture}, weights {config.pretrained}"


def num_truncated(prompts: Sequence[str], context_length: int = CONTEXT_TOKENS) -> int:
    """Return how many prompts are longer than the tower's context; open_clip cuts them and keeps the end token."""
    # A token stands for a letter or more: short prompts need no tokenizer, whose import takes seconds.
    doubtful = [prompt for prompt in prompts if len(prompt) + 2 > context_length or not prompt.isascii()]
    if not doubtful:
        return 0
    import open_clip

    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    return sum(len(tokenizer.encode(prompt)) + 2 > context_length for prompt in doubtful)


def weights_stamp(config: TextConfig) -> list | None:
    """Return size and time of a weights file, so that another file under the same name is noticed."""
    path = Path(config.pretrained)
    if not path.is_file():
        return None
    return [path.stat().st_size, path.stat().st_mtime_ns]


def _embed(prompts: Sequence[str], config: TextConfig) -> list[np.ndarray]:
    import open_clip
    import torch

    tower = _tower(config)
    tokens: list[np.ndarray] = []
    with torch.no_grad():
        for at in range(0, len(prompts), 32):
            _, hidden = tower(open_clip.tokenize(list(prompts[at : at + 32])))  # (B, T, C)
            tokens += list(hidden.float().numpy())
    return tokens


@cache
def _tower_of(architecture: str, pretrained: str, seed: int):
    import open_clip
    import torch
    from open_clip.transformer import TextTransformer

    if pretrained == "seeded":
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if architecture == "tiny":
                return TextTransformer(**TINY, output_tokens=True).eval()
            tower = open_clip.create_model(architecture, force_custom_text=True).text
    else:
        try:
            tower = open_clip.create_model(
                architecture, pretrained=pretrained, force_custom_text=True, require_pretrained=True
            ).text
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            raise UserError(
                f"text.architecture={architecture}, text.pretrained={pretrained}: the weights cannot be loaded "
                f"({type(error).__name__}: {error}). Give an open_clip tag with network access, the path of a weights "
                f"file, or text.pretrained=seeded for a random tower (then the report carries little meaning)"
            ) from None
    tower.output_tokens = True
    return tower.eval()


def _tower(config: TextConfig):
    if config.architecture == "tiny" and config.pretrained != "seeded":
        raise UserError("text.architecture=tiny has no published weights: set text.pretrained=seeded")
    return _tower_of(config.architecture, config.pretrained, config.seed)
