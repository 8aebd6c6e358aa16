"""VBench's half of `parity_vbench.py`: runs in VBench's environment and imports nothing of this project.

Usage: vbench_side.py FOLDER, which holds frames.npz (one (T, H, W) uint8 array a video), prompt.txt and the weights;
writes vbench.json: dimension -> value, per-video values and seconds, or the error.
"""

import json
import sys
import time
import traceback
from pathlib import Path

import cv2
import decord
import numpy as np

DIMENSIONS = (
    "subject_consistency",
    "background_consistency",
    "temporal_flickering",
    "motion_smoothness",
    "imaging_quality",
    "overall_consistency",
)


def write_video(path: Path, frames: np.ndarray) -> None:
    """Write grey frames with the lossless codec FFV1, and check that both readers of VBench return them unchanged.

    VBench goes by the ending .mp4; the readers go by the content, an AVI file.
    """
    avi = path.with_suffix(".avi")
    writer = cv2.VideoWriter(str(avi), cv2.VideoWriter_fourcc(*"FFV1"), 8, frames.shape[:0:-1])
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR))
    writer.release()
    avi.replace(path)

    capture, read = cv2.VideoCapture(str(path)), []
    while (found := capture.read())[0]:
        read.append(found[1])
    colour = np.repeat(frames[..., None], 3, axis=-1)
    reader = decord.VideoReader(str(path), num_threads=1)
    for images in (np.stack(read), reader.get_batch(range(len(reader))).asnumpy()):
        if not np.array_equal(images, colour):
            raise RuntimeError(f"{path} is not lossless")


def main() -> None:
    """Run every dimension; one that fails leaves its error."""
    folder = Path(sys.argv[1])
    videos = folder / "videos"
    videos.mkdir(exist_ok=True)
    for name, frames in np.load(folder / "frames.npz").items():
        write_video(videos / f"{name}.mp4", frames)
    prompt = (folder / "prompt.txt").read_text()
    prompts = {path.name: prompt for path in sorted(videos.iterdir())}

    import torch
    from vbench import VBench

    bench = VBench(torch.device("cpu"), "", str(folder / "vbench"))
    results = {}
    for dimension in DIMENSIONS:
        start = time.perf_counter()
        try:
            bench.evaluate(str(videos), dimension, prompts, [dimension], local=True, mode="custom_input")
        except Exception as error:  # whatever stops VBench is this benchmark's finding
            traceback.print_exc()
            results[dimension] = {"error": f"{type(error).__name__}: {error}"}
            continue
        value, videos_found = json.loads((folder / "vbench" / f"{dimension}_eval_results.json").read_text())[dimension]
        each = {Path(video["video_path"]).stem: float(video["video_results"]) for video in videos_found}
        results[dimension] = {"value": float(value), "videos": each, "seconds": time.perf_counter() - start}
        print(f"{dimension}: {results[dimension]}", flush=True)
    (folder / "vbench.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
