"""python -m trace_lightning: make the phantom; examine a CT-RATE tree; generate a CT from a mask and a report."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from trace_lightning.config import DataConfig
from trace_lightning.errors import UserError, run_command

EXAMPLES = """examples:
  python -m trace_lightning phantom data/phantom --patients 20 --seed 0
  python -m trace_lightning doctor /data/CT-RATE --csv doctor.csv --jobs 8
  python -m trace_lightning generate --run runs/phantom/ours/seed0 --mask mask.nii.gz \\
      --prompt "54 years old male: Consolidation in the right lower lobe." --out ct.nii.gz

Experiments (training, tables) are run by: python -m experiments --help
Volumes are scored by:                     python -m evaluation --help
"""


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

    generate = commands.add_parser("generate", help="generate a CT volume from a mask and a report")
    generate.add_argument("--run", dest="run_folder", type=Path, required=True, help="runs/PROFILE/EXPERIMENT/seedK")
    generate.add_argument("--mask", type=Path, required=True, help="NIfTI of VISTA3D ids, any orientation and spacing")
    generate.add_argument("--prompt", default="", help='"{age} years old {sex}: {impression}"')
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


def _phantom(options: argparse.Namespace) -> int:
    from trace_lightning.config import PhantomConfig
    from trace_lightning.data.phantom.tree import write_tree

    if options.patients < 1 or options.valid_patients < 0 or min(options.spacing_z_mm) <= 0 or options.size < 16:
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
    experiment, training_folder = _trained(options.run_folder)
    experiment.run.device = options.device
    labels, grid = read_labels(options.mask)

    from trace_lightning.generation import generate_from_mask, inputs_note

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
        "text": inputs_note(experiment),
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
    masks = options.run_folder.parents[1] / "ground_truth" / options.run_folder.name / "masks"
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
    from trace_lightning.config import read_experiment

    experiment = read_experiment(run_folder / "config.yaml")
    reference = read_json(run_folder / "train" / "training.json")
    return experiment, (run_folder / "train" / reference["folder"]).resolve()


def _bar(what: str):
    """Return a progress bar as a context whose value is called as (done, total, note)."""
    import contextlib

    from rich.progress import Progress as Bar

    @contextlib.contextmanager
    def context():
        with Bar(transient=True) as bar:
            task = bar.add_task(what)
            yield lambda done, total, note="": bar.update(task, completed=done, total=total)

    return context()


if __name__ == "__main__":
    run_command(main)
