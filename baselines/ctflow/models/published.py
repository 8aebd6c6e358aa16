"""The published weights of CTFlow: diffusers' folder `denoiser_ema`, in the names of its code."""

from __future__ import annotations

from pathlib import Path

from baselines.ctflow.models.autoencoder import load_strictly
from baselines.ctflow.models.stdit import STDiT
from trace_lightning.errors import UserError

FILE = "diffusion_pytorch_model.safetensors"
IN_REPOSITORY = f"checkpoint-680000/denoiser_ema/{FILE}"  # of EnyaWoooo/CTFlow on the hub
PREFIX = "model."  # the published class wraps STDiT


def load_published(stdit: STDiT, source: str) -> None:
    """Load published weights into a network of the published shape.

    Args:
        stdit: built with the published settings.
        source: the folder `denoiser_ema`, or the hub's name of the repository.

    Raises:
        UserError: the file cannot be had, or does not fit; lists what is missing.
    """
    from safetensors.torch import load_file

    path = Path(source) / FILE if Path(source).is_dir() else _download(source)
    if not path.is_file():
        raise UserError(f"{path}: no such file; ctflow.model.published is a folder that holds {FILE}, or a hub name")
    load_strictly(stdit, {name.removeprefix(PREFIX): value for name, value in load_file(path).items()}, path)


def _download(repository: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(repository, IN_REPOSITORY))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"ctflow.model.published={repository}: neither a folder nor to be had from the hub "
            f"({type(error).__name__}: {first})"
        ) from None
