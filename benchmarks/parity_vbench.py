"""Compare the six dimensions with VBench's own code: identical random weights, identical lossless frames.

Usage: python -m benchmarks.parity_vbench [--env FOLDER] [--dino FOLDER] [--work FOLDER]

Makes an environment for VBench 0.1.5 (`vbench_requirements.txt`; about 5 GB), writes random weights in the published
formats where VBench looks for them, runs VBench there and ours here, and prints a table. MUSIQ needs the extra `musiq`
on this side. VBench takes DINO's code from github.com/facebookresearch/dino; `--dino` is a copy of that repository,
without which VBench clones it. Exit code 1 if a dimension differs by more than `TOLERANCE` or does not run. It takes
some minutes on one core, most of them ViCLIP's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.row import Row

HERE = Path(__file__).resolve().parent
VBENCH = "vbench==0.1.5"
TOLERANCE = 1e-5
PROMPT = "Chest CT with small bilateral pleural effusions, enlarged heart and a nodule in the right upper lobe, " * 3
DEFAULT_ENVIRONMENT = HERE.parent / "cache" / "vbench_env"


def rows(others: Path | None = None) -> Iterator[Row]:
    """Yield a row for each dimension, where VBench's environment was made before.

    Args:
        others: not used, VBench needs an environment of its own.
    """
    if not (DEFAULT_ENVIRONMENT / "complete").exists():
        why = "make its environment (5 GB) first: python -m benchmarks.parity_vbench"
        yield Row("the six dimensions", VBENCH, None, None, note=why)
        return
    with tempfile.TemporaryDirectory() as temporary:
        theirs, ours = both(DEFAULT_ENVIRONMENT, Path(temporary))
    for name, their in theirs.items():
        our = ours[name]
        if "error" in their or "error" in our:
            note = "; ".join(side["error"] for side in (their, our) if "error" in side)
            yield Row(name, VBENCH, their.get("value"), our.get("value"), note=note)
        else:
            seconds = their["seconds"], our["seconds"]
            yield Row(name, VBENCH, their["value"], our["value"], *seconds, TOLERANCE, "wall time, loading included")


def both(env: Path, work: Path, dino: Path | None = None) -> tuple[dict, dict]:
    """Return what VBench and we make of the same frames with the same random weights.

    Args:
        env: VBench's environment, made where it is absent.
        work: keeps weights, videos and results.
        dino: copy of DINO's repository; None: the one in `env`, if any.
    """
    python = environment(env)
    frames = clips()
    np.savez(work / "frames.npz", **frames)
    (work / "prompt.txt").write_text(PROMPT)
    kept = env / "dino"
    if dino and not kept.exists():
        shutil.copytree(dino, kept)
    weights = write_weights(work / "cache", kept if kept.exists() else None)
    return run_vbench(python, work), run_ours(frames, weights)


def main() -> int:
    """Run both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", type=Path, default=DEFAULT_ENVIRONMENT, help="VBench's environment, made if absent")
    parser.add_argument("--dino", type=Path, help="copy of the repository facebookresearch/dino")
    parser.add_argument("--work", type=Path, help="keeps weights, videos and results; default: a temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        return print_table(*both(given.env, work, given.dino))


def environment(folder: Path) -> Path:
    """Return the Python of VBench's environment, made where it is absent."""
    python = folder / "bin" / "python"
    stamp = folder / "complete"
    if not stamp.exists():
        print(f"making VBench's environment in {folder}", flush=True)
        uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
        make = [uv, "venv", "-q", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
        install = [uv, "pip", "install", "--python", str(python)] if uv else [str(python), "-m", "pip", "install"]
        subprocess.run([*make, str(folder)], check=True)
        subprocess.run([*install, "-q", "-r", str(HERE / "vbench_requirements.txt")], check=True)
        subprocess.run([*install, "-q", "--no-deps", VBENCH], check=True)
        stamp.touch()
    return python


def clips() -> dict[str, np.ndarray]:
    """Return two clips of unequal length, so that pooling over slices differs from the mean over videos."""
    from scipy import ndimage

    found = {}
    for name, frames, seed in (("first", 10, 0), ("second", 5, 1)):
        rng = np.random.default_rng(seed)
        volume = ndimage.gaussian_filter(rng.normal(size=(frames, 144, 128)), (0.4, 4, 4))
        volume = (volume - volume.min()) / np.ptp(volume) * 230 + rng.normal(0, 6, volume.shape)
        found[name] = np.clip(np.rint(volume), 0, 255).astype(np.uint8)
    return found


def write_weights(cache: Path, dino: Path | None) -> dict[str, Path]:
    """Write random weights under the published names and in the published formats.

    Args:
        cache: VBench's cache folder.
        dino: copy of DINO's repository.

    Returns:
        Dimension -> file.
    """
    import open_clip
    import timm
    import torch

    from evaluation.vbench.amt import AmtS
    from evaluation.vbench.viclip import ViClip

    torch.manual_seed(0)
    files = {
        "subject_consistency": cache / "dino_model" / "dino_vitbase16_pretrain.pth",
        "background_consistency": cache / "clip_model" / "ViT-B-32.pt",
        "motion_smoothness": cache / "amt_model" / "amt-s.pth",
        "imaging_quality": cache / "pyiqa_model" / "musiq_spaq_ckpt-358bb6af.pth",
        "overall_consistency": cache / "ViCLIP" / "ViClip-InternVid-10M-FLT.pth",
    }
    for file in files.values():
        file.parent.mkdir(parents=True, exist_ok=True)

    vit = spread(timm.create_model("vit_base_patch16_224.dino", num_classes=0), 3.0)
    torch.save(vit.state_dict(), files["subject_consistency"])
    hub = cache / "torch" / "hub" / "checkpoints" / files["subject_consistency"].name
    hub.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(files["subject_consistency"], hub)
    if dino:
        shutil.copytree(dino, cache / "dino_model" / "facebookresearch_dino_main", dirs_exist_ok=True)

    write_clip_archive(files["background_consistency"])
    torch.save({"epoch": 1, "state_dict": spread(AmtS(), 1.0).state_dict()}, files["motion_smoothness"])
    torch.save({"model": spread(ViClip()).state_dict()}, files["overall_consistency"])
    bpe = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    shutil.copy(bpe, files["overall_consistency"].parent)
    try:
        from pyiqa.archs.musiq_arch import MUSIQ
    except ImportError:
        files.pop("imaging_quality")
    else:
        musiq = spread(MUSIQ(pretrained=False), 1.0)
        with torch.no_grad():
            musiq.head.weight.mul_(20)
            musiq.head.bias.add_(50)  # opinions between 0 and 100
        torch.save(musiq.state_dict(), files["imaging_quality"])
    return files


def spread(network, gain: float = 1.5):
    """Draw weights whose features differ between frames, as those of a fresh network hardly do."""
    import torch

    with torch.no_grad():
        for weight in network.parameters():
            noise = torch.randn_like(weight)
            if weight.ndim > 1:
                weight.copy_(noise * gain * weight[0].numel() ** -0.5)
            else:
                weight.add_(0.1 * noise)
    return network.eval()


def write_clip_archive(path: Path) -> None:
    """Write CLIP ViT-B/32 as OpenAI does: a TorchScript archive in float16 that also holds three settings."""
    import open_clip
    import torch

    model = spread(open_clip.CLIP(**open_clip.get_model_config("ViT-B-32-quickgelu")))
    model.attn_mask = model._buffers.pop("attn_mask")  # no part of the archive
    for name, value in (("input_resolution", 224), ("context_length", 77), ("vocab_size", 49408)):
        vars(model).pop(name, None)  # open_clip keeps two of them as numbers
        model.register_buffer(name, torch.tensor(value))
    inputs = {"encode_image": torch.zeros(1, 3, 224, 224), "encode_text": torch.zeros(1, 77, dtype=torch.long)}
    torch.jit.trace_module(model, inputs, check_trace=False).half().save(path)


def run_vbench(python: Path, work: Path) -> dict:
    """Run VBench in its own process."""
    cache = work / "cache"
    variables = os.environ | {"VBENCH_CACHE_DIR": str(cache), "TORCH_HOME": str(cache / "torch")}
    variables.pop("PYTHONPATH", None)
    log = work / "vbench.log"
    print(f"running VBench (log in {log})", flush=True)
    with log.open("w") as out:
        command = [str(python), str(HERE / "vbench_side.py"), str(work)]
        done = subprocess.run(command, env=variables, stdout=out, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.exit(f"VBench stopped:\n{log.read_text()[-3000:]}")
    return json.loads((work / "vbench.json").read_text())


def run_ours(frames: dict[str, np.ndarray], weights: dict[str, Path]) -> dict:
    """Score the same frames here, summed up as VBench does."""
    from evaluation.vbench.consistency import pooled
    from evaluation.vbench.dimensions import DIMENSIONS
    from evaluation.vbench.video import Video

    found = {}
    for name, dimension in DIMENSIONS.items():
        if dimension.weights and name not in weights:
            found[name] = {"error": f"needs the extra {dimension.extra} here"}
            continue
        start = time.perf_counter()
        score = dimension.load(weights.get(name))
        measures = {video: score(Video(array, PROMPT)) for video, array in frames.items()}
        each = {video: measure[name] for video, measure in measures.items()}
        summed: Callable = pooled if dimension.per_slice else lambda name, each: np.mean([m[name] for m in each])
        found[name] = {
            "value": float(summed(name, list(measures.values()))),
            "videos": each,
            "seconds": time.perf_counter() - start,
        }
    return found


def print_table(theirs: dict, ours: dict) -> int:
    """Print both sides; return 1 where they differ or one did not run."""
    print(f"{'dimension':24} {'VBench':>12} {'ours':>12} {'difference':>11} {'VBench s':>9} {'ours s':>7}")
    failed = 0
    for name, their in theirs.items():
        our = ours[name]
        if "error" in their or "error" in our:
            print(f"{name:24} not compared: " + "; ".join(side["error"] for side in (their, our) if "error" in side))
            failed = 1
            continue
        scale = 100 if name == "imaging_quality" else 1  # VBench leaves single videos at 0..100 there
        apart = [their["value"] - our["value"]]
        apart += [value / scale - our["videos"][video] for video, value in their["videos"].items()]
        worst = max(apart, key=abs)
        failed |= abs(worst) > TOLERANCE
        print(
            f"{name:24} {their['value']:12.8f} {our['value']:12.8f} {worst:11.1e} {their['seconds']:9.1f} "
            f"{our['seconds']:7.1f}"
        )
    print("difference: the largest of the set's value and of each video's. Seconds include loading.")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
