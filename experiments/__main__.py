"""python -m experiments: run the rows of a table, see how far they are, show what an experiment's keys are."""

from __future__ import annotations

import argparse
from pathlib import Path

from trace_lightning.errors import UserError, run_command

EXAMPLES = """examples:
  python -m experiments run experiments/table1.yaml             Table 1 on the built-in phantom
  python -m experiments run table1 --profile smoke              the same path with tiny settings
  python -m experiments run table1 --dry-run                    what would be done, how long, how large
  python -m experiments run ours --seed 1                       one row, another seed
  python -m experiments run table1 --seeds 0 1 2                every row three times: mean and spread
  python -m experiments run ours sample.num_inference_steps=24  an override: results go to runs/scratch/
  python -m experiments run table1 --redo generate              discard volumes and scores, keep the trainings
  python -m experiments submit table1 --seeds 0 1 2 slurm.partition=gpu slurm.gpus_per_node=1 slurm.time=240
  python -m experiments submit table1 --cluster local           parallel processes, no Slurm
  python -m experiments status table1 --watch                   rows and stages, live
  python -m experiments show ours --profile ct_rate             every key, its value and the file that set it
  python -m experiments plot table1                             curves of the trainings, from their CSV files
  python -m experiments sweep experiments/sweeps/noise_steps.yaml --dry-run   every point of a sweep; W&B is not needed
  python -m experiments bench                                   samplers on one set of weights: speed beside quality

A run that was stopped, even by kill -9, goes on when the command is repeated.
"""


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and do it."""
    # argparse takes no further positionals after an option, and calls --key=value unknown: the loader explains it.
    options, others = parser().parse_known_args(arguments)
    options.overrides += others
    if getattr(options, "seeds", None):
        options.overrides += [given for given in options.seeds if isinstance(given, str)]
        options.seeds = [given for given in options.seeds if isinstance(given, int)]
    return options.do(options)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Trains, generates and scores the rows of the paper's tables.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = top.add_subparsers(required=True, metavar="{run,submit,status,show,plot,sweep,dashboard,bench}")

    run = _command(commands, "run", _run, "TABLE_OR_EXPERIMENT", "do what is left of a table's rows, then print it")
    run.add_argument("--jobs", type=int, metavar="N", help="rows worked on at once (default: the profile's run.jobs)")
    run.add_argument(
        "--redo",
        choices=["prepare", "train", "generate", "evaluate"],
        metavar="STAGE",
        help="discard the results of prepare, train, generate or evaluate and of what follows, and do them again",
    )
    run.add_argument("--dry-run", action="store_true", help="only print what would be done and an estimate of its cost")
    submit = _command(
        commands, "submit", _submit, "TABLE_OR_EXPERIMENT", "do what is left as jobs of a cluster, the table last"
    )
    submit.add_argument(
        "--cluster",
        choices=["slurm", "local", "debug"],
        default="slurm",
        help="Slurm (default); processes without it, as many as run.jobs; or this process, for debugging",
    )
    submit.add_argument("--jobs", type=int, metavar="N", help="processes of --cluster local (the profile's run.jobs)")
    submit.epilog = (
        "slurm.KEY=VALUE among the overrides asks Slurm for something in all stages, slurm.STAGE.KEY=VALUE in one "
        "(prepare, reference, train, row, table): slurm.partition=gpu slurm.gpus_per_node=1 slurm.train.time=600"
    )
    submit.add_argument("--print", action="store_true", help="print the scripts for sbatch and submit nothing")
    status = _command(
        commands, "status", _status, "TABLE_OR_EXPERIMENT", "print how far each stage of each row is, and what failed"
    )
    status.add_argument("--watch", action="store_true", help="go on showing it until all is done")
    _command(commands, "show", _show, "EXPERIMENT", "print every key of an experiment and the file that set it")
    plot = _command(commands, "plot", _plot, "TABLE_OR_EXPERIMENT", "draw loss, learning rate, speed and more by step")
    plot.add_argument("--out", type=Path, metavar="DIR", help="of curves.png and curves.csv (runs/PROFILE/TABLE)")
    sweep = commands.add_parser("sweep", help="run every point of a sweep here, without W&B", allow_abbrev=False)
    sweep.add_argument(
        "file", type=Path, metavar="FILE", help="of experiments/sweeps/; `wandb sweep FILE` takes it too"
    )
    sweep.add_argument("--dry-run", action="store_true", help="check the points and print their commands")
    sweep.set_defaults(do=_sweep, overrides=[])
    dashboard = commands.add_parser("dashboard", help="create the W&B workspace of dashboard.yaml", allow_abbrev=False)
    dashboard.add_argument(
        "project", metavar="ENTITY/PROJECT", help="where runs go: run.wandb_entity, run.wandb_project"
    )
    dashboard.set_defaults(do=_dashboard, overrides=[])
    bench = _command(
        commands, "bench", _bench, "EXPERIMENT", "time samplers on one set of weights, beside their quality"
    )
    bench.add_argument(
        "--seeds", type=_seed, nargs="+", metavar="K", help="quality over several trainings (--seed alone)"
    )
    bench.add_argument("--volumes", type=int, metavar="V", help="cases that are timed (all of the test split)")
    bench.add_argument("--slices", type=int, metavar="N", help="slices of each that are timed (all)")
    bench.add_argument("--repeats", type=int, default=3, help="turns of timing (3)")
    bench.add_argument("--speed-only", action="store_true", help="time; make and score no volumes")
    bench.add_argument("--device", choices=["auto", "cpu", "cuda"], help="the same as run.device=")
    bench.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="of bench.json, .md, .png (runs/PROFILE/bench/EXPERIMENT, speeds alone in speed/)",
    )
    return top


def _command(commands, name: str, do, target: str, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    default = {"nargs": "?", "default": "ours"} if name == "bench" else {}
    of = (
        "an experiment: its file or name (ours)"
        if default
        else "a file such as experiments/table1.yaml, or its name: table1"
    )
    command.add_argument("target", metavar=target, help=of, **default)
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides, as train.max_steps=10")
    command.add_argument("--profile", default="phantom", help="data, size and device: experiments/profiles/ (phantom)")
    seeds = command.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, default=0, help="of training and sampling (0)")
    if name in ("run", "status", "submit", "plot"):
        seeds.add_argument("--seeds", type=_seed, nargs="+", metavar="K", help="several: mean and spread, or lines")
    command.set_defaults(do=do)
    return command


def _seed(text: str) -> int | str:
    """Return a seed, or the key=value pair that argparse takes for one because it follows the seeds."""
    if "=" in text:
        return text
    if not text.lstrip("-").isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: a seed is a whole number from 0")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    from experiments import pipeline

    options.overrides += [] if options.jobs is None else [f"run.jobs={options.jobs}"]
    return pipeline.run(_request(options, redo=options.redo, dry_run=options.dry_run))


def _submit(options: argparse.Namespace) -> int:
    from experiments import slurm
    from experiments.submit import submit

    settings, options.overrides = slurm.split(options.overrides)
    options.overrides += [] if options.jobs is None else [f"run.jobs={options.jobs}"]
    return submit(_request(options), options.cluster, settings, options.print)


def _status(options: argparse.Namespace) -> int:
    from experiments import status

    if options.watch:
        status.watch(_request(options))
    else:
        print(status.status(_request(options)))
    return 0


def _bench(options: argparse.Namespace) -> int:
    from experiments.bench import bench

    options.overrides += [] if options.device is None else [f"run.device={options.device}"]
    for name in ("volumes", "slices", "repeats"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: at least 1")
    sizes = options.volumes, options.slices, options.repeats
    bench(_request(options), *sizes, options.out, options.speed_only)
    return 0


def _plot(options: argparse.Namespace) -> int:
    from experiments.plot import plot

    written = plot(_request(options), options.out)
    print(f"written: {', '.join(map(str, written))}")
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from experiments.sweep import read_sweep, run_sweep

    _refuse_overrides(options)
    return run_sweep(read_sweep(options.file), options.dry_run)


def _dashboard(options: argparse.Namespace) -> int:
    from experiments.dashboard import create

    _refuse_overrides(options)
    print(create(options.project))
    return 0


def _refuse_overrides(options: argparse.Namespace) -> None:
    if options.overrides:
        raise UserError(f"{options.overrides[0]}: this command takes no key=value; its file has the keys")


def _show(options: argparse.Namespace) -> int:
    from experiments.load import describe, load

    loaded = load(options.target, options.profile, options.overrides, options.seed, complete=False)
    print(describe(loaded), end="")
    return 0


def _request(options: argparse.Namespace, **more):
    from experiments.pipeline import Request

    return Request(options.target, options.profile, _seeds(options), tuple(options.overrides), **more)


def _seeds(options: argparse.Namespace) -> tuple[int, ...]:
    return tuple(getattr(options, "seeds", None) or [options.seed])


if __name__ == "__main__":
    run_command(main)
