"""python -m baselines.ctflow check: what to look at before a long training."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trace_lightning.errors import UserError, run_command

if TYPE_CHECKING:
    import numpy as np

    from baselines.ctflow.config import CTFlowExperiment
    from trace_lightning.config import DataConfig
    from trace_lightning.protocol import Progress

EXAMPLES = """examples, in the order in which they save time:
  python -m baselines.ctflow check reconstruction valid_1_a_1.nii.gz --source kl --weights black-forest-labs/FLUX.1-dev
  python -m baselines.ctflow check reconstruction valid_1_a_1.nii.gz --source tiny --weights taef2 --image-range 0 0.833
  python -m experiments show ctflow --profile phantom > ctflow.yaml
  python -m baselines.ctflow check overfit ctflow.yaml --out overfit
  python -m experiments run ctflow
  python -m baselines.ctflow check autoregressive --run runs/phantom/ctflow/seed0

Trainings and tables are made by: python -m experiments --help
"""
RECONSTRUCTION = """Encode and decode volumes slice by slice and print what is left of them: PSNR, SSIM and MS-SSIM
(from 176 pixels on), means over slices in the window -1000..1000 HU. What the autoencoder loses the flow cannot bring
back."""
OVERFIT = """Train on a single volume, then generate it again: clip by clip after its own real slices (Next-Block), and
freely (Full-Body). A network that cannot learn one volume by heart learns no other: 25 dB and more are to be expected,
and no more than the autoencoder's own PSNR. A stopped check goes on where it was."""
AUTOREGRESSIVE = """Generate the test volumes of a finished run clip by clip (Full-Body), and print how each came to its
end, its length against the length wanted, and the mean |difference| of neighbouring slices at the borders of clips over
that elsewhere: about 1 where borders cannot be seen."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and do it."""
    options = parser().parse_args(arguments)
    return options.do(options)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    plain = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        prog="python -m baselines.ctflow",
        description="CTFlow: three checks before a long training.",
        epilog=EXAMPLES,
        formatter_class=plain,
    )
    commands = top.add_subparsers(required=True, metavar="check")
    check = commands.add_parser("check", help="what an autoencoder keeps; one volume by heart; a volume clip by clip")
    checks = check.add_subparsers(required=True, metavar="{reconstruction,overfit,autoregressive}")

    one = checks.add_parser(
        "reconstruction", help="what an autoencoder keeps of volumes", description=RECONSTRUCTION, formatter_class=plain
    )
    one.add_argument("volumes", nargs="+", type=Path, metavar="VOLUME", help="NIfTI or MetaImage in HU")
    one.add_argument("--source", choices=["kl", "tiny", "own"], default="kl", help="as ctflow.autoencoder.source")
    one.add_argument(
        "--weights",
        required=True,
        help="hub's name or folder (kl), folder of taef2_*.pth (tiny), autoencoder/diffusers of a training (own)",
    )
    one.add_argument("--subfolder", default="vae", help="of the hub's repository or the folder (kl; default vae)")
    one.add_argument(
        "--image-range",
        nargs=2,
        type=float,
        default=[-1.0, 1.0],
        metavar=("LOW", "HIGH"),
        help="what -1000 and 1000 HU become; CTFlow as published: 0 0.833 (default -1 1)",
    )
    one.add_argument("--size", type=int, default=256, help="pixels that slices are resized to (default 256)")
    one.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    one.set_defaults(do=_reconstruction)

    two = checks.add_parser("overfit", help="learn one volume by heart", description=OVERFIT, formatter_class=plain)
    two.add_argument("config", type=Path, metavar="CONFIG", help="what `python -m experiments show ctflow` printed")
    two.add_argument("--out", type=Path, required=True, help="folder of the training")
    two.add_argument("--seed", type=int, default=0, help="of the starting noise")
    two.set_defaults(do=_overfit)

    three = checks.add_parser(
        "autoregressive",
        help="do clips fit together, do volumes end?",
        description=AUTOREGRESSIVE,
        formatter_class=plain,
    )
    three.add_argument(
        "--run", dest="run_folder", type=Path, required=True, help="runs/PROFILE/EXPERIMENT/seedK, trained"
    )
    three.add_argument("--cases", type=int, help="the first so many test cases (default: all)")
    three.add_argument("--seed", type=int, default=0, help="of the starting noise")
    three.set_defaults(do=_autoregressive)
    return top


def _reconstruction(options: argparse.Namespace) -> int:
    import torch

    from baselines.ctflow.checks import mean_row, reconstruction
    from baselines.ctflow.config import AutoencoderConfig
    from baselines.ctflow.models.autoencoder import load_autoencoder
    from trace_lightning.artifacts import case_id_of
    from trace_lightning.config import DataConfig
    from trace_lightning.device import pick_device

    low, high = options.image_range
    if not -1 <= low < high <= 1:
        raise UserError(f"--image-range {low} {high}: LOW is below HIGH, both within [-1, 1]")
    config = AutoencoderConfig(options.source, options.weights, options.subfolder, [low, high])
    autoencoder = load_autoencoder(config, Path(options.weights)).to(torch.device(pick_device(options.device)))
    if options.size < 1 or options.size % autoencoder.factor:
        raise UserError(f"--size {options.size}: this autoencoder needs a multiple of {autoencoder.factor}")
    data = DataConfig(size=options.size)
    volumes = ((case_id_of(path), _windowed(path, data)) for path in options.volumes)
    with _bar("volumes") as progress:
        rows = reconstruction(autoencoder, volumes, len(options.volumes), progress)
    _print([*rows, mean_row(rows)] if len(rows) > 1 else rows)
    return 0


def _windowed(path: Path, data: DataConfig) -> np.ndarray:
    """Return a volume's slices (D, H, W) float32 in [-1, 1], resized to `data.size` pixels."""
    from trace_lightning.artifacts import read_volume
    from trace_lightning.data.preprocess import hu_to_unit, to_model_grid

    image = hu_to_unit(to_model_grid(read_volume(path), data).hu, data)
    if image.min() == image.max():
        raise UserError(
            f"{path}: nothing lies between {data.hu_min:g} and {data.hu_max:g}, so this is not in HU; of CT-RATE take "
            "the files of dataset/train_fixed or valid_fixed"
        )
    return image


def _overfit(options: argparse.Namespace) -> int:
    from baselines.ctflow.checks import one_volume, overfit
    from trace_lightning.data.cache import prepare

    experiment = one_volume(_read(options.config))
    with _bar("") as progress:
        prepare(experiment, progress)
        found = overfit(experiment, options.out, options.seed, progress)
    print(json.dumps(found, indent=2))
    return 0


def _autoregressive(options: argparse.Namespace) -> int:
    from baselines.ctflow.checks import as_case, autoregressive, mean_row
    from baselines.ctflow.generation import load_generator
    from trace_lightning.artifacts import read_json
    from trace_lightning.data.cache import open_prepared

    experiment = _read(options.run_folder / "config.yaml")
    training = options.run_folder / "train"
    generator = load_generator(experiment, (training / read_json(training / "training.json")["folder"]).resolve())
    cases = [as_case(case) for case in open_prepared(experiment).cases("test")[: options.cases]]
    with _bar("slices") as progress:
        rows = autoregressive(generator, cases, [options.seed + n for n in range(len(cases))], progress)
    _print([*rows, mean_row(rows)] if len(rows) > 1 else rows)
    return 0


def _read(config: Path) -> CTFlowExperiment:
    from baselines.ctflow.config import CTFlowExperiment
    from trace_lightning.config import read_experiment

    experiment = read_experiment(config, CTFlowExperiment)
    if experiment.method != CTFlowExperiment.method:
        raise UserError(f"{config}: an experiment of {experiment.method}; this command works on those of CTFlow")
    return experiment


def _print(rows: Sequence[dict]) -> None:
    """Print rows as columns; the first is text."""
    table = [list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[n]) for line in table) for n in range(len(table[0]))]
    for line in table:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _shown(value: object) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Progress]:
    """Return a progress bar as a context whose value is called as (done, total, note)."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task(what)
        yield lambda done, total, note="": bar.update(task, completed=done, total=total, description=note or what)


if __name__ == "__main__":
    run_command(main)
