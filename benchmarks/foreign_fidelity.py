"""Runs surface-distance and medpy on label maps, in their own environment; prints JSON. Imports nothing of ours."""

import importlib.metadata
import json
import sys
import time

import numpy as np


def entries(made, real, ids, spacing_mm):
    """Yield what each package gives for each measure: mean over the labels, and processor seconds."""
    import surface_distance
    from medpy.metric import binary

    def robust(a, b):
        distances = surface_distance.compute_surface_distances(b, a, spacing_mm)
        return surface_distance.compute_robust_hausdorff(distances, 95)

    measures = {
        "surface-distance": {"dice": surface_distance.compute_dice_coefficient, "hd95_mm": robust},
        "medpy": {
            "dice": binary.dc,
            "jaccard": binary.jc,
            "hd95_mm": lambda a, b: binary.hd95(a, b, voxelspacing=spacing_mm),
        },
    }
    for package, functions in measures.items():
        tool = f"{package} {importlib.metadata.version(package)}"
        for name, compute in functions.items():
            started = time.process_time()
            values = [compute(made == i, real == i) for i in ids]
            yield {
                "tool": tool,
                "name": name,
                "value": float(np.mean(values)),
                "seconds": time.process_time() - started,
            }


if __name__ == "__main__":
    given = np.load(sys.argv[1])
    spacing = tuple(float(step) for step in given["spacing_mm"])
    print(json.dumps(list(entries(given["made"], given["real"], given["ids"].tolist(), spacing))))
