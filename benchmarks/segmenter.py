"""What the segmenter's memory is worth: VISTA3D by MONAI's sliding window, and by averaged features.

    python benchmarks/segmenter.py                                        # a narrow network, about a minute
    python benchmarks/segmenter.py --width 48 --window 128 --shape 239 239 187   # 512 x 512 x 400 of 0.7 mm

Random weights of a fixed seed, a smooth random image of 1.5 mm, all 117 prompts, on the CPU. Each way runs in a process
of its own, and its peak is that of the process's resident memory, less what it had with network and image loaded.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WAYS = ("monai", "float32", "float16")
COMPARED_PLANES = 8  # logits of all voxels would fill the disk


def main() -> None:
    """Run each way, print seconds, peak and agreement."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--width", type=int, default=8, help="channels of the network; published are 48")
    parser.add_argument("--window", type=int, default=64, help="voxels along each axis; published are 128")
    parser.add_argument("--shape", type=int, nargs=3, default=(112, 112, 112), help="voxels of 1.5 mm")
    parser.add_argument("--only", choices=WAYS, nargs="+", default=WAYS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(run(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(args, Path(folder))
        for way in args.only:
            command = [sys.executable, __file__, "--way", way, "--folder", folder]
            command += ["--width", str(args.width), "--window", str(args.window), "--shape", *map(str, args.shape)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            figures = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{way:8} {figures['seconds']:8.1f} s of processor time, peak {figures['peak_mb']:7.0f} MB resident, "
                f"{figures['above_mb']:7.0f} MB above network and image; {figures['classes']} classes",
                flush=True,
            )
        compare(Path(folder), args.only)


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """Write image and weights."""
    import torch
    from monai.networks.nets import vista3d132
    from scipy import ndimage

    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=args.shape), 2)
    np.save(folder / "image.npy", np.interp(noise, (noise.min(), noise.max()), (0, 1)).astype(np.float32))
    torch.manual_seed(0)
    torch.save(vista3d132(encoder_embed_dim=args.width).state_dict(), folder / "weights.pt")


def run(args: argparse.Namespace) -> dict:
    """Segment in this process; return its figures, leave labels and some planes of logits."""
    import torch
    from monai.inferers import sliding_window_inference

    from trace_lightning.anatomy.labels import everything_ids
    from trace_lightning.anatomy.vista3d import Vista3D, best_ids

    accumulator = "float32" if args.way == "monai" else args.way
    segmenter = Vista3D.load(args.folder / "weights.pt", window=args.window, accumulator=accumulator)
    image = torch.from_numpy(np.load(args.folder / "image.npy"))
    axis = int(np.argmax(image.shape))
    compared = np.linspace(0, image.shape[axis] - 1, COMPARED_PLANES).astype(int).tolist()
    loaded_mb, started = peak_mb(), time.process_time()
    if args.way == "monai":
        with torch.inference_mode():
            logits = sliding_window_inference(
                image[None, None],
                (args.window,) * 3,
                1,
                segmenter.network,
                padding_mode="replicate",
                transpose=True,
                class_vector=torch.tensor(everything_ids())[:, None],
            )[0]
            ids = best_ids(logits).numpy()
        seconds, peak = time.process_time() - started, peak_mb()
        planes = {plane: logits.select(1 + axis, plane).numpy() for plane in compared}
    else:
        ids = segmenter.ids(image)
        seconds, peak = time.process_time() - started, peak_mb()
        of_planes = {n: features for n, features in segmenter.mean_features(image) if n in compared}
        planes = {plane: segmenter.logits(features).numpy() for plane, features in of_planes.items()}
    np.save(args.folder / f"ids_{args.way}.npy", ids)
    np.save(args.folder / f"logits_{args.way}.npy", np.stack([planes[plane] for plane in compared]))
    figures = {"seconds": seconds, "peak_mb": peak, "above_mb": peak - loaded_mb}
    return figures | {"classes": len(np.unique(ids))}


def peak_mb() -> float:
    """Return the peak of this process's resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def compare(folder: Path, ways: tuple[str, ...]) -> None:
    """Print how well the others agree with the first."""
    first, *others = ways
    ids, logits = (np.load(folder / f"{kind}_{first}.npy") for kind in ("ids", "logits"))
    for way in others:
        same = 100 * (np.load(folder / f"ids_{way}.npy") == ids).mean()
        apart = np.abs(np.load(folder / f"logits_{way}.npy") - logits).max()
        print(f"{way} against {first}: labels agree in {same:.4f} % of voxels, averaged logits within {apart:.1e}")
    print(f"logits: standard deviation {logits.std():.2f}")


if __name__ == "__main__":
    main()
