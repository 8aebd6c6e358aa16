"""Pretrained weights of the metric networks: which file, from where, under which licence, and whether it is intact.

A file is looked for below one folder (`--weights`, else the environment variable TRACE_WEIGHTS, else
`~/.cache/trace_lightning/weights`), and nothing is downloaded unless `python -m evaluation weights fetch` is asked to.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from trace_lightning.artifacts import atomic_path, file_digest
from trace_lightning.errors import UserError

VARIABLE = "TRACE_WEIGHTS"
BLOCK = 1 << 20


@dataclass(frozen=True)
class File:
    """One form in which weights are published.

    Attributes:
        path: below the weights folder.
        url: official source, or empty where it has to be got by hand.
        checksum: `sha256:...` or `md5:...` (the first digits suffice), or empty where none is published.
    """

    path: str
    url: str = ""
    checksum: str = ""


@dataclass(frozen=True)
class Weights:
    """Pretrained weights that a metric needs.

    Attributes:
        name: key, as in `find`.
        network: what they are the weights of.
        licence: as its publisher states it.
        files: forms that are understood, the preferred one first.
        how: how to get them where no file has a url.
    """

    name: str
    network: str
    licence: str
    files: tuple[File, ...]
    how: str = ""


CLIP = "https://openaipublic.azureedge.net/clip/models"
FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"
WEIGHTS = {
    weights.name: weights
    for weights in (
        Weights(
            "inception_2015",
            "Inception-v3 of 2015 (TensorFlow's FID graph), torch-fidelity's port",
            "Apache-2.0",
            (
                File(
                    "inception/weights-inception-2015-12-05-6726825d.pth",
                    f"{FIDELITY}/weights-inception-2015-12-05-6726825d.pth",
                    "sha256:6726825d",
                ),
            ),
        ),
        Weights(
            "i3d_kinetics400",
            "I3D RGB, Kinetics-400 (TF-Hub)",
            "weights Apache-2.0",
            (
                File("i3d/i3d_kinetics400.safetensors"),
                File("i3d/i3d_torchscript.pt", "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1"),
                File("i3d/i3d_pretrained_400.pt"),
            ),
            "StyleGAN-V's i3d_torchscript.pt or VideoGPT's i3d_pretrained_400.pt, put below i3d/",
        ),
        Weights(
            "alexnet",
            "AlexNet, ImageNet (torchvision), features",
            "BSD-3-Clause",
            (
                File("lpips/alexnet_imagenet_features.safetensors"),
                File(
                    "lpips/alexnet-owt-7be5be79.pth",
                    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
                    "sha256:7be5be79",
                ),
            ),
        ),
        Weights(
            "dino_vitb16",
            "DINO ViT-B/16",
            "Apache-2.0",
            (
                File(
                    "dino/dino_vitbase16_pretrain.pth",
                    "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
                ),
            ),
        ),
        Weights(
            "dinov2_vitl14",
            "DINOv2 ViT-L/14",
            "Apache-2.0",
            (
                File(
                    "dinov2/dinov2_vitl14_pretrain.pth",
                    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
                ),
            ),
        ),
        Weights(
            "radimagenet_resnet50",
            "ResNet-50, RadImageNet",
            "on request from RadImageNet; research use",
            (File("radimagenet/RadImageNet-ResNet50_notop.pth"),),
            "the form of MONAI's 2.5-D FID: see github.com/Warvito/radimagenet-models; put it below radimagenet/",
        ),
        Weights(
            "clip_vitb32",
            "CLIP ViT-B/32 (OpenAI)",
            "MIT",
            (
                File(
                    "clip/ViT-B-32.pt",
                    f"{CLIP}/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
                    "sha256:40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
                ),
            ),
        ),
        Weights(
            "clip_vitl14",
            "CLIP ViT-L/14 (OpenAI)",
            "MIT",
            (
                File(
                    "clip/ViT-L-14.pt",
                    f"{CLIP}/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
                    "sha256:b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
                ),
            ),
        ),
        Weights(
            "amt_s",
            "AMT-S frame interpolation",
            "CC BY-NC 4.0: non-commercial",
            (File("amt/amt-s.pth", "https://huggingface.co/lalala125/AMT/resolve/main/amt-s.pth"),),
        ),
        Weights(
            "musiq_spaq",
            "MUSIQ, SPAQ",
            "PolyForm Noncommercial (pyiqa)",
            (
                File(
                    "musiq/musiq_spaq_ckpt-358bb6af.pth",
                    "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth",
                    "sha256:358bb6af",
                ),
            ),
        ),
        Weights(
            "viclip",
            "ViCLIP-L/14, InternVid-10M-FLT",
            "not stated with the file; its paper is CC BY-NC-SA 4.0: treat as non-commercial",
            (
                File(
                    "viclip/ViClip-InternVid-10M-FLT.pth",
                    "https://huggingface.co/OpenGVLab/VBench_Used_Models/resolve/main/ViClip-InternVid-10M-FLT.pth",
                ),
            ),
        ),
        Weights(
            "ct_clip",
            "CT-CLIP v2, with CXR-BERT",
            "CC BY-NC-SA 4.0: non-commercial",
            (File("ct_clip/CT-CLIP_v2.pt"),),
            "request access to the dataset ibrahimhamamci/CT-RATE on the Hugging Face hub; below models/ there",
        ),
    )
}


def folder(given: Path | None = None) -> Path:
    """Return the weights folder: the one given, else of the environment, else the user's cache."""
    return Path(given or os.environ.get(VARIABLE) or Path.home() / ".cache" / "trace_lightning" / "weights")


def find(name: str, below: Path) -> Path | None:
    """Return the file of some weights, in the best form that is there, or None."""
    return next((below / file.path for file in WEIGHTS[name].files if (below / file.path).is_file()), None)


def why_absent(name: str, below: Path) -> str:
    """Say what is missing and how it is got, for a cell without a number."""
    weights = WEIGHTS[name]
    if any(file.url for file in weights.files):
        return f"needs {weights.network} ({weights.files[0].path}): python -m evaluation weights fetch {name}"
    return f"needs {weights.network} ({weights.files[0].path} below {below}): {weights.how}"


def check(path: Path, file: File) -> None:
    """Compare a file with its published checksum; a web page saved in its place is told by its first bytes.

    Raises:
        UserError: it differs.
    """
    with Path(path).open("rb") as stream:
        if stream.read(BLOCK).lstrip()[:1] == b"<":
            raise UserError(f"{path}: a web page, not weights; fetch it again")
    if not file.checksum:
        return
    algorithm, _, wanted = file.checksum.partition(":")
    with Path(path).open("rb") as stream:
        found = hashlib.file_digest(stream, algorithm).hexdigest()
    if not found.startswith(wanted):
        raise UserError(f"{path}: {algorithm} is {found[: len(wanted)]}..., its publisher's {wanted}; fetch it again")


def check_found(name: str, path: Path) -> None:
    """Compare a file that `find` gave with the checksum of the form that it is in.

    Raises:
        UserError: it differs.
    """
    for file in WEIGHTS[name].files:
        if path.match(file.path):
            check(path, file)


@cache
def _digest(path: Path, size: int, modified_ns: int) -> str:
    return file_digest(path)


def identity(name: str, below: Path) -> str | None:
    """Identify the file of some weights by its content, or return None where there is none; read once a process."""
    path = find(name, below)
    return None if path is None else _digest(path, path.stat().st_size, path.stat().st_mtime_ns)


def fetch(name: str, below: Path, progress=lambda done, total, note="": None) -> Path:
    """Download weights from their official source into the weights folder, checked, whole or not at all.

    Raises:
        UserError: no public source, no connection, or another checksum than published.
    """
    from http.client import HTTPException
    from urllib.error import URLError
    from urllib.request import urlopen

    file = next((file for file in WEIGHTS[name].files if file.url), None)
    if file is None:
        raise UserError(f"{name}: not to be had by download; {WEIGHTS[name].how}")
    target = below / file.path
    try:
        with urlopen(file.url) as source, atomic_path(target) as temporary:
            total = int(source.headers.get("Content-Length") or 0)
            with temporary.open("wb") as out:
                while block := source.read(BLOCK):
                    out.write(block)
                    progress(out.tell(), total, name)
                received = out.tell()
            if received < total:
                raise UserError(f"{file.url}: ended after {received} of {total} bytes; fetch it again")
            check(temporary, file)
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise UserError(f"{file.url}: cannot be read ({error}); put the file at {target} by hand") from None
    return target
