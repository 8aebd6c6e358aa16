"""Embeddings of prompts from a frozen open_clip text tower, cached per prompt.

A prompt is cut at the tower's context length, by its own tokenizer, which keeps the end token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trace_lightning.artifacts import atomic_path, digest
from trace_lightning.config import TextConfig
from trace_lightning.data.cache_folder import cache_folder, touch, writing
from trace_lightning.errors import UserError

FORMAT = 2  # raise it when embeddings change their content or layout
BATCH = 32
DEFAULT_CONTEXT, DEFAULT_WIDTH = 77, 512  # of open_clip's text towers that do not say otherwise
TINY = {"width": 64, "heads": 4, "layers": 2, "output_dim": 64}
TINY_TOKENIZER = "ViT-B-32"  # open_clip's own, 77 tokens
OWN_WEIGHTS = ("hf-hub:", "local-dir:")  # open_clip's names of models that come with weights and tokenizer


class Embedding(NamedTuple):
    """A prompt as the text tower reads it.

    Attributes:
        tokens: (T, C) float32, the last layer at each place of the context.
        pooled: (P,) float32, the tower's own summary in the space it shares with images; not normalised.
        num_tokens: of the whole prompt, special tokens included.
        context_length: of the tower; what lies beyond was not read.
    """

    tokens: np.ndarray
    pooled: np.ndarray
    num_tokens: int
    context_length: int

    @property
    def is_truncated(self) -> bool:
        """Whether the tower did not read all of the prompt."""
        return self.num_tokens > self.context_length


class Embeddings(Mapping[str, Embedding]):
    """prompt -> embedding, each read from its file when it is asked for.

    At 240 kB a prompt (ViT-L/14), holding those of many volumes would cost more memory than all else in a loader.
    """

    def __init__(self, paths: Mapping[str, Path]):
        self.paths = dict(paths)

    def __getitem__(self, prompt: str) -> Embedding:
        return _read(self.paths[prompt])

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


def embed_prompts(prompts: Sequence[str], config: TextConfig, cache_dir: Path) -> Embeddings:
    """Return prompt -> embedding; each prompt is computed once and kept in `cache_dir`.

    Raises:
        UserError: the tower's weights or its tokenizer cannot be had; random ones never stand in for them.
    """
    folder = text_folder(config, cache_dir)
    paths = {prompt: folder / f"{digest(prompt)}.safetensors" for prompt in dict.fromkeys(prompts)}
    if not all(path.is_file() for path in paths.values()):
        with writing(folder, text_identity(config)):
            missing = [prompt for prompt, path in paths.items() if not path.is_file()]
            for prompt, embedding in zip(missing, _embed(missing, config), strict=True):
                write_embedding(paths[prompt], embedding)
    touch(folder)
    return Embeddings(paths)


def num_truncated(embeddings: Iterable[Embedding]) -> int:
    """Return how many prompts were longer than the tower's context."""
    return sum(embedding.is_truncated for embedding in embeddings)


def text_dim(config: TextConfig) -> int:
    """Return C, the width of the tower's tokens, without building it."""
    if config.architecture == "tiny":
        return TINY["width"]
    text = _settings(config)["text_cfg"]
    return _width_of_transformer(config, text) if text.get("hf_model_name") else text.get("width", DEFAULT_WIDTH)


def pooled_dim(config: TextConfig) -> int:
    """Return P, the width of the pooled embedding, without building the tower."""
    return TINY["output_dim"] if config.architecture == "tiny" else _settings(config)["embed_dim"]


def context_length(config: TextConfig) -> int:
    """Return how many tokens the tower reads, without building it."""
    if config.architecture == "tiny":
        return DEFAULT_CONTEXT
    return _settings(config)["text_cfg"].get("context_length", DEFAULT_CONTEXT)


def describe(config: TextConfig) -> str:
    """Return what the tower is, for the provenance of a volume."""
    if config.pretrained == "seeded":
        return f"open_clip text tower {config.architecture}, random weights of seed {config.seed} (not pretrained)"
    return f"open_clip text tower {config.architecture}, weights {config.pretrained}"


def text_identity(config: TextConfig) -> dict[str, Any]:
    """Return what embeddings depend on besides the prompts."""
    return {"format": FORMAT, **asdict(config), "weights": weights_stamp(config)}


def text_folder(config: TextConfig, cache_dir: Path | str) -> Path:
    """Return where a tower's embeddings are kept."""
    return cache_folder(cache_dir, "text", text_identity(config))


def weights_stamp(config: TextConfig) -> list | None:
    """Return size and time of files of weights, so that others under the same name are noticed."""
    path = Path(config.architecture.removeprefix("local-dir:"))
    if config.architecture.startswith("local-dir:") and path.is_dir():
        return [[file.name, *_size_and_time(file)] for file in sorted(path.iterdir()) if file.is_file()]
    return _size_and_time(Path(config.pretrained)) if Path(config.pretrained).is_file() else None


def _embed(prompts: Sequence[str], config: TextConfig) -> list[Embedding]:
    import torch

    tower, tokenizer = _tower(config), _tokenizer(config.architecture)
    embeddings: list[Embedding] = []
    with torch.no_grad():
        for at in range(0, len(prompts), BATCH):
            batch = list(prompts[at : at + BATCH])
            pooled, tokens = tower(tokenizer(batch))  # (B, P), (B, T, C)
            for prompt, *arrays in zip(batch, tokens.float().numpy(), pooled.float().numpy(), strict=True):
                embeddings.append(Embedding(*arrays, _num_tokens(tokenizer, prompt), tokenizer.context_length))
    return embeddings


def _num_tokens(tokenizer: Any, prompt: str) -> int:
    """Return how many tokens open_clip's tokenizer would make of a prompt in an endless context."""
    if hasattr(tokenizer, "encode"):  # CLIP's own, which adds a start and an end
        return len(tokenizer.encode(prompt)) + 2
    clips = tokenizer.tokenizer_mode == "clips"  # which adds a start, an end and a class token by itself
    ids = tokenizer.tokenizer(tokenizer.clean_fn(prompt), add_special_tokens=not clips).input_ids
    return len(ids) + (3 if clips else 0)


def write_embedding(path: Path, embedding: Embedding) -> None:
    """Write an embedding, whole or not at all."""
    from safetensors.numpy import save

    arrays = {name: np.array(value, order="C") for name, value in embedding._asdict().items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(arrays))  # `save_file` hides a full disk behind an error of its own


def _read(path: Path) -> Embedding:
    from safetensors.numpy import load_file  # four times as fast as an .npz: a loader reads one for each sample

    tokens, pooled, num_tokens, length = map(load_file(path).get, Embedding._fields)
    return Embedding(tokens, pooled, int(num_tokens), int(length))


def _settings(config: TextConfig) -> dict[str, Any]:
    """Return open_clip's own description of a model."""
    import open_clip

    try:
        settings = open_clip.get_model_config(config.architecture)
    except OSError as error:  # of hf-hub: and local-dir:
        raise UserError(f"text.architecture={config.architecture}: {type(error).__name__}: {error}") from None
    if settings is None:
        raise UserError(
            f"text.architecture={config.architecture}: not a model of open_clip (open_clip.list_models() names them), "
            "nor hf-hub:ORG/REPO, local-dir:FOLDER or 'tiny'"
        )
    return settings


def _width_of_transformer(config: TextConfig, text: dict[str, Any]) -> int:
    """Return the width of a text tower that is a model of the package transformers."""
    try:
        from open_clip.hf_configs import arch_dict
        from transformers import AutoConfig

        settings = AutoConfig.from_pretrained(text["hf_model_name"])
    except (ImportError, OSError, ValueError) as error:
        raise _unloadable(config, error) from None
    return getattr(settings, arch_dict[settings.model_type]["config_names"]["width"])


@cache
def _tokenizer(architecture: str) -> Any:
    """Return the tower's own tokenizer."""
    import open_clip

    try:
        tokenizer = open_clip.get_tokenizer(TINY_TOKENIZER if architecture == "tiny" else architecture)
    except (ImportError, OSError, ValueError) as error:
        raise _unloadable(TextConfig(architecture), error) from None
    return tokenizer


@cache
def _tower_of(architecture: str, pretrained: str, seed: int, stamp: str):
    """Build a tower; `stamp` is there so that other weights under the same name are loaded anew."""
    import open_clip
    import torch
    from open_clip.transformer import TextTransformer

    if pretrained == "seeded":
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if architecture == "tiny":
                return TextTransformer(**TINY, output_tokens=True).eval()
            blank = {"load_weights": False, "pretrained_text": False}
            tower = open_clip.create_model(architecture, force_custom_text=True, **blank).text
    else:
        tag = None if pretrained == "own" else pretrained
        try:
            tower = open_clip.create_model(
                architecture, pretrained=tag, force_custom_text=True, require_pretrained=True
            ).text
        except (RuntimeError, ImportError, OSError, ValueError, KeyError) as error:
            raise _unloadable(TextConfig(architecture, pretrained), error) from None
    tower.output_tokens = True
    return tower.eval()


def _tower(config: TextConfig):
    brings_own = config.architecture.startswith(OWN_WEIGHTS)
    if config.architecture == "tiny" and config.pretrained != "seeded":
        raise UserError("text.architecture=tiny has no published weights: set text.pretrained=seeded")
    if config.pretrained != "seeded" and brings_own != (config.pretrained == "own"):
        raise UserError(
            f"text.architecture={config.architecture}, text.pretrained={config.pretrained}: models of hf-hub: and "
            "local-dir: bring their own weights (text.pretrained=own), all others need a tag or a file"
        )
    return _tower_of(config.architecture, config.pretrained, config.seed, str(weights_stamp(config)))


def _unloadable(config: TextConfig, error: Exception) -> UserError:
    if isinstance(error, ImportError):
        return UserError(f"text.architecture={config.architecture}: needs a package that is not installed ({error})")
    return UserError(
        f"text.architecture={config.architecture}, text.pretrained={config.pretrained}: cannot be loaded "
        f"({type(error).__name__}: {error}). Give an open_clip tag with network access, the path of a weights "
        f"file, or text.pretrained=seeded for a random tower (then the report carries little meaning)"
    )


def _size_and_time(path: Path) -> list[int]:
    return [path.stat().st_size, path.stat().st_mtime_ns]
