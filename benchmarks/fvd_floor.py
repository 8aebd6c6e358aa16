"""FVD (or another distance) of real volumes against real volumes, and its fall with their number, on the phantom.

    python -m benchmarks.fvd_floor --volumes 120 --weights WEIGHTS --out fvd_floor

Writes `<metric>_floor.json` and `.png` into the folder; features are kept there, so that a repeated or longer run
goes on where the last one was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from evaluation import weights
from evaluation.along_z import grey
from evaluation.distances import SET_METRICS
from evaluation.features.extract import Extraction
from evaluation.features.extractors import EXTRACTORS
from evaluation.features.store import FeatureStore
from evaluation.floor import floor_curve, plot_floor
from evaluation.settings import Settings
from trace_lightning.artifacts import digest, write_json
from trace_lightning.config import PhantomConfig
from trace_lightning.data.phantom.scan import Scan
from trace_lightning.errors import UserError, run_command


def main() -> None:
    """Run the command."""
    command = argparse.ArgumentParser(description="The real-against-real floor of FVD on the phantom.")
    command.add_argument("--volumes", type=int, default=60)
    command.add_argument("--size", type=int, default=64, help="pixels a side")
    command.add_argument("--metric", default="fvd_i3d", choices=SET_METRICS)
    command.add_argument("--weights", type=Path, default=None)
    command.add_argument("--out", type=Path, default=Path("fvd_floor"))
    given = command.parse_args()

    config = PhantomConfig(num_train_patients=given.volumes, size=given.size, spacing_z_mm=[6.5, 7.5, 8.5])
    metric = SET_METRICS[given.metric]
    views = Settings().views()
    extraction = Extraction([metric], views, weights.folder(given.weights), FeatureStore(given.out / "features"))
    if extraction.reasons:
        raise UserError(extraction.reasons[metric.name])
    cut = metric.extractor, metric.cuts(views)[0]
    features = {}
    for number in range(1, given.volumes + 1):
        scan = Scan(config, "train", number)
        identity = digest([config.seed, config.size, config.spacing_z_mm, scan.case_id])
        features[scan.case_id] = extraction.case(
            scan.case_id, identity, lambda _, scan=scan: grey(scan.render()[0].astype("float32")), real=True
        )[cut]
        print(f"{number}/{given.volumes} {scan.case_id}: {len(features[scan.case_id])}", flush=True)

    points = floor_curve(features, kind=metric.kind, splits=20)
    record = {"metric": metric.name, "d": EXTRACTORS[metric.extractor].dim, "points": [p.to_json() for p in points]}
    write_json(given.out / f"{metric.name}_floor.json", record | {"size": given.size, "volumes": given.volumes})
    label = f"phantom, {given.size} x {given.size}, 20 random splits: mean and range"
    plot_floor({label: points}, given.out / f"{metric.name}_floor.png", ylabel=metric.title, d=record["d"])
    for point in points:
        print(f"{point.volumes:4d} volumes  n = {point.n:6.1f}  {metric.title} {point.value:8.2f}", flush=True)


if __name__ == "__main__":
    run_command(main)
