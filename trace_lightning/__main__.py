"""python -m trace_lightning: fetch and examine CT-RATE, make the phantom, keep the cache, generate a CT from a mask."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from trace_lightning.config import DataConfig, RunConfig
from trace_lightning.errors import UserError, run_command

EXAMPLES = """examples:
  python -m trace_lightning phantom data/phantom --patients 20 --seed 0
  python -m trace_lightning download --patients 100 --seed 0 --to /data/CT-RATE --dry-run
  python -m trace_lightning doctor /data/CT-RATE --csv doctor.csv --jobs 8
  python -m trace_lightning generate --run runs/phantom/ours/seed0 --mask mask.nii.gz \\
      --prompt "54 years old male: Consolidation in the right lower lobe." --out ct.nii.gz

  python -m trace_lightning cache ls

Experiments (training, tables) are run by: python -m experiments --help
Volumes are scored by:                     python -m evaluation --help
"""

DOWNLOAD = """Fetch CT-RATE's tables, then only the volumes that an experiment with these patients and this seed reads.
Repeat the command to continue one that was stopped."""
DOWNLOAD_NOTES = """CT-RATE is gated: accept its terms at https://huggingface.co/datasets/ibrahimhamamci/CT-RATE, then
set HF_TOKEN or run `hf auth login`. The tables choose the volumes; `doctor` then tells which of them cannot be used.
List all volumes of such a patient in dataset/metadata/no_chest_train.txt (or _valid.txt): the next patient takes the
place, and nobody else moves. Spare patients are those next ones; without them, repeat the command."""


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run the sub-command."""
    parser = argparse.ArgumentParser(
        prog="python -m trace_lightning",
        description="TRACE: 3D chest CT from a 2D diffusion model over frame pairs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    phantom = commands.add_parser("phantom", help="write procedural chest CTs as a CT-RATE tree")
    phantom.add_argument("out", type=Path, metavar="OUT", help="folder to write; gets CT-RATE's dataset/ inside")
    phantom.add_argument("--patients", type=int, default=10, help="training patients (default 10)")
    phantom.add_argument("--valid-patients", type=int, default=2, help="patients of the valid split (default 2)")
    phantom.add_argument("--seed", type=int, default=0)
    phantom.add_argument("--size", type=int, default=128, help="pixels in plane (default 128)")
    phantom.add_argument("--fov-mm", type=float, default=360.0, help="field of view (default 360)")
    phantom.add_argument(
        "--spacing-z-mm", type=float, nargs="+", default=[0.75, 1.5, 3.0], help="one is drawn per patient"
    )
    phantom.set_defaults(run=_phantom)

    doctor = commands.add_parser("doctor", help="examine every volume of a CT-RATE tree: in HU, raw, or not usable")
    doctor.add_argument("root", type=Path, metavar="ROOT", help="folder that holds CT-RATE's dataset/")
    doctor.add_argument("--csv", type=Path, default=Path("doctor.csv"), help="a line a volume; repeat to continue it")
    doctor.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    doctor.add_argument("--version", choices=["auto", "v1", "v2"], default="auto", help="as data.version")
    doctor.add_argument("--min-slices", type=int, default=DataConfig.min_slices, help="as data.min_slices")
    doctor.add_argument("--repair", action="store_true", help="as data.repair: mend what the evidence explains")
    doctor.set_defaults(run=_doctor)

    _add_download(commands)
    _add_cache(commands)

    generate = commands.add_parser("generate", help="generate a CT volume from a mask and a report")
    generate.add_argument("--run", dest="run_folder", type=Path, required=True, help="runs/PROFILE/EXPERIMENT/seedK")
    generate.add_argument("--mask", type=Path, required=True, help="NIfTI of VISTA3D ids, any orientation and spacing")
    generate.add_argument("--prompt", default="", help='"{age} years old {sex}: {impression}", or as trained on')
    generate.add_argument("--out", type=Path, required=True, help="NIfTI to write, int16 HU on the mask's geometry")
    generate.add_argument("--slices", type=int, help="slices that the model makes (default: as many as the mask has)")
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    generate.set_defaults(run=_generate)

    effect = commands.add_parser("text-effect", help="same mask and noise, two prompts: what changes where")
    effect.add_argument("--run", dest="run_folder", type=Path, required=True, help="runs/PROFILE/EXPERIMENT/seedK")
    effect.add_argument("--prompt", required=True, help="a prompt that names a finding")
    effect.add_argument("--against", required=True, help="the same prompt without it")
    effect.add_argument("--control", help="a third prompt, without the finding too: how much other words alone change")
    effect.add_argument("--structure", type=int, required=True, help="VISTA3D id of the structure that it names")
    effect.add_argument("--seed", type=int, default=0)
    effect.set_defaults(run=_text_effect)

    options = parser.parse_args(arguments)
    return options.run(options)


def _add_download(commands) -> None:
    """Add `download`; the defaults are those of an experiment."""
    command = commands.add_parser(
        "download", help="fetch of CT-RATE what an experiment reads", description=DOWNLOAD, epilog=DOWNLOAD_NOTES
    )
    default = DataConfig()
    command.add_argument("--to", type=Path, required=True, metavar="ROOT", help="folder that gets dataset/")
    command.add_argument("--patients", type=int, default=default.num_train_patients, help="of training (default 100)")
    command.add_argument("--val-patients", type=int, default=default.num_val_patients, help="(default 5)")
    command.add_argument("--test-patients", type=int, default=default.num_test_patients, help="(default 50)")
    command.add_argument("--seed", type=int, default=default.split_seed, help="as data.split_seed (default 0)")
    command.add_argument("--spare", type=int, default=0, metavar="N", help="more patients of each kind (default 0)")
    command.add_argument("--version", choices=["v2", "v1"], default="v2", help="v2: HU; v1: raw (default v2)")
    command.add_argument("--reconstructions", choices=["first", "all"], default=default.reconstructions)
    command.add_argument("--min-slices", type=int, default=default.min_slices, help="as data.min_slices")
    command.add_argument("--masks", action="store_true", help="TotalSegmentator's masks of the same volumes as well")
    command.add_argument("--revision", default="main", help="branch, tag or commit of the dataset (default main)")
    command.add_argument("--workers", type=int, default=4, help="files at a time (default 4)")
    command.add_argument(
        "--verify", action="store_true", help="compare SHA-256 of files that are there, not only sizes"
    )
    command.add_argument("--dry-run", action="store_true", help="fetch the tables only, and list what would be fetched")
    command.set_defaults(run=_download)


def _add_cache(commands) -> None:
    """Add `cache ls` and `cache rm`."""
    command = commands.add_parser("cache", help="list and remove prepared data")
    actions = command.add_subparsers(dest="action", required=True, metavar="{ls,rm}")
    listing = actions.add_parser("ls", help="what is prepared, from what, how large, when last used, by which runs")
    removal = actions.add_parser("rm", help="remove prepared data; what a run needs is prepared again")
    for action in (listing, removal):
        action.add_argument("--cache-dir", type=Path, default=Path(RunConfig.cache_dir), help="as run.cache_dir")
        action.add_argument("--runs-dir", type=Path, default=Path(RunConfig.runs_dir), help="as run.runs_dir")
    removal.add_argument("digests", nargs="*", metavar="DIGEST", help="its first digits are enough")
    removal.add_argument("--unused", action="store_true", help="all that no run refers to")
    removal.add_argument("--all", action="store_true")
    removal.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    listing.set_defaults(run=_cache_ls)
    removal.set_defaults(run=_cache_rm)


def _download(options: argparse.Namespace) -> int:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    from trace_lightning.data import download
    from trace_lightning.data.footprint import need_space

    least = {"patients": 1, "val_patients": 0, "test_patients": 1, "seed": 0, "spare": 0, "min_slices": 1, "workers": 1}
    for name, bound in least.items():
        if getattr(options, name) < bound:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)} is below {bound}")
    data = DataConfig(
        num_train_patients=options.patients,
        num_val_patients=options.val_patients,
        num_test_patients=options.test_patients,
        split_seed=options.seed,
        version=options.version,
        reconstructions=options.reconstructions,
        min_slices=options.min_slices,
    )
    request = download.Request(
        options.to, data, options.spare, options.masks, options.revision, options.workers, options.verify
    )
    disable_progress_bars()  # one bar for all files instead of one for each
    hub = HfApi()
    with download.alone(options.to):
        with _bar("tables") as progress:
            missing = download.find_missing(request, hub, progress, print)
        if options.dry_run and missing.files:
            print(missing.listing())
        print(missing.summary())
        print(need_space(options.to, missing.num_bytes, "the download"), flush=True)
        if options.dry_run:
            return 0
        with _bar("volumes") as progress:
            download.fetch(request, hub, missing, progress)
    print(f"{len(missing.wanted)} files are in {options.to / 'dataset'}\n{download.next_steps(request)}")
    return 0


def _cache_ls(options: argparse.Namespace) -> int:
    from trace_lightning.data import caches

    entries, unreadable = caches.find(options.cache_dir, options.runs_dir)
    print(caches.table(entries))
    for path in unreadable:
        print(f"not known what it refers to: {path}")
    return 0


def _cache_rm(options: argparse.Namespace) -> int:
    from trace_lightning.data import caches
    from trace_lightning.data.cache_folder import remove

    entries, unreadable = caches.find(options.cache_dir, options.runs_dir)
    chosen = caches.choose(entries, options.digests, options.unused, options.all)
    if options.unused and unreadable:
        raise UserError(f"--unused: not known what {unreadable[0]} refers to; name digests instead, or remove that run")
    refused = 0
    for entry in chosen:
        if not options.dry_run:
            try:
                remove(entry.folder)
            except UserError as error:
                print(f"kept: {error}")
                refused += 1
                continue
        print(f"{'would remove' if options.dry_run else 'removed'} {caches.line(entry)}")
    return 2 if refused else 0


def _phantom(options: argparse.Namespace) -> int:
    from trace_lightning.config import PhantomConfig
    from trace_lightning.data.phantom.tree import write_tree

    if options.patients < 1 or options.valid_patients < 0 or not min(options.spacing_z_mm) > 0 or options.size < 16:
        raise UserError("--patients >= 1, --valid-patients >= 0, --spacing-z-mm > 0, --size >= 16")
    config = PhantomConfig(
        num_train_patients=options.patients,
        num_valid_patients=options.valid_patients,
        seed=options.seed,
        size=options.size,
        fov_mm=options.fov_mm,
        spacing_z_mm=options.spacing_z_mm,
    )
    with _bar("phantom patients") as progress:
        write_tree(options.out, config, progress)
    print(f"wrote {options.patients} + {options.valid_patients} patients to {options.out / 'dataset'}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from trace_lightning.data.doctor import Settings, examine_tree, summary

    if options.jobs < 1:
        raise UserError("--jobs is at least 1")
    settings = Settings(str(options.root.resolve()), options.version, options.min_slices, options.repair)
    with _bar("volumes") as progress:
        findings, absent = examine_tree(settings, options.csv, options.jobs, progress)
    print(summary(findings, absent))
    print(f"a line a volume: {options.csv}")
    return int(any(finding.state == "refused" for finding in findings))


def _generate(options: argparse.Namespace) -> int:
    from trace_lightning.artifacts import read_labels, write_volume_as

    if options.slices is not None and options.slices < 1:
        raise UserError("--slices is at least 1")
    if not options.out.name.endswith((".nii", ".nii.gz")):
        raise UserError(f"--out {options.out}: the name of a NIfTI file ends in .nii or .nii.gz")
    if options.out.resolve() == options.mask.resolve():
        raise UserError(f"--out {options.out}: is the mask itself, which would be lost; name another file")
    experiment, training_folder = _trained(options.run_folder)
    experiment.run.device = options.device
    labels, grid = read_labels(options.mask)

    from trace_lightning.generation import generate_from_mask, text_note

    with _bar("slices") as progress:
        volume, generated = generate_from_mask(
            experiment,
            training_folder,
            labels,
            grid,
            options.prompt,
            options.seed,
            options.slices,
            progress,
        )
    provenance = {
        "experiment": experiment.name,
        "profile": experiment.profile,
        "mask": str(options.mask),
        "prompt": options.prompt,
        "text": text_note(experiment),
        "seed": options.seed,
        "model_grid": generated.volume.grid.to_json(),
        "evaluations_per_slice": generated.evaluations_per_slice,
        "seconds": round(generated.seconds, 3),
    }
    write_volume_as(options.out, volume, like=options.mask, provenance=provenance)
    print(f"wrote {options.out}: {grid.shape[0]} slices, HU, on the geometry of {options.mask}")
    return 0


def _text_effect(options: argparse.Namespace) -> int:
    from trace_lightning.text_effect import summary, text_effect

    experiment, training_folder = _trained(options.run_folder)
    masks = options.run_folder.parents[1] / "ground_truth" / "masks"
    for what, prompt in (("finding", options.prompt), ("control", options.control)):
        if prompt is None:
            continue
        with _bar("slices") as progress:
            effects = text_effect(
                experiment,
                training_folder,
                masks,
                prompt,
                options.against,
                options.structure,
                options.seed,
                progress,
            )
        print(f"{what}: {prompt!r} against {options.against!r}\n{summary(effects)}")
    return 0


def _trained(run_folder: Path):
    """Return the keys of a run and the folder of its training."""
    from trace_lightning.artifacts import read_json
    from trace_lightning.config import Experiment, read_experiment

    experiment = read_experiment(run_folder / "config.yaml")
    if experiment.method != Experiment.method:
        raise UserError(f"--run {run_folder}: a run of {experiment.method}; this command works on runs of TRACE")
    reference = read_json(run_folder / "train" / "training.json")
    return experiment, (run_folder / "train" / reference["folder"]).resolve()


def _bar(what: str):
    """Return a progress bar as a context whose value is called as (done, total, note)."""
    import contextlib

    from rich.progress import Progress as Bar
    from rich.progress import TextColumn

    @contextlib.contextmanager
    def context():
        with Bar(*Bar.get_default_columns(), TextColumn("{task.fields[pace]}"), transient=True) as bar:
            task, started = bar.add_task(what, pace=""), time.monotonic()

            def update(done: int, total: int, note: str = "") -> None:
                pace = f"{done / (time.monotonic() - started):.3g} {what}/s" if done else ""
                bar.update(task, completed=done, total=total, pace=pace)

            yield update

    return context()


if __name__ == "__main__":
    run_command(main)
