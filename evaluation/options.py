"""The command line of `python -m evaluation`: commands, options and what they say of themselves."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """\
examples:
  python -m evaluation score my_volumes real_volumes --out scores
  python -m evaluation score my_volumes real_volumes --masks masks --jobs 4 --metrics fidelity slices --out scores
  python -m evaluation fidelity my_labels.nii.gz real_labels.nii.gz --out fidelity
  python -m evaluation table experiments/table1.yaml --profile phantom --seeds 0 1 2
  python -m evaluation compare runs/phantom/ours/seed0 runs/phantom/pfm_dag/seed0
  python -m evaluation lengths scores_a scores_b --labels ours theirs --lengths 64 128 192 256 --out lengths
  python -m evaluation memorisation my_volumes training_volumes heldout_volumes --out memorisation
  python -m evaluation metrics
  python -m evaluation weights check
"""
EXIT = "Exit code 0: everything was scored; 1: something was not (it is named, the rest is scored); 2: nothing was."


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(
        prog="python -m evaluation",
        description="Score CT volumes on disk, whoever made them, and print tables of scores.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_score,
        _add_fidelity,
        _add_table,
        _add_compare,
        _add_lengths,
        _add_memorisation,
        _add_metrics,
        _add_weights,
    ):
        add(commands)
    return top


def _add_score(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "score",
        help="score a folder of volumes against the real ones",
        description="Segment every generated and its real volume by the same segmenter, compare them, measure what "
        "happens from slice to slice, and write per_case/, per_case.csv, per_label.csv, summary.json and report.md. "
        "Stopped, it continues: cases that are done, with the same files and protocol, are not scored again.",
        epilog=EXIT,
    )
    command.add_argument(
        "generated",
        type=Path,
        help="folder of <case>.nii.gz (.nii, .mha, or a folder of PNG frames each) in HU; <case>.json beside them for "
        "costs",
    )
    command.add_argument("reference", type=Path, help="folder of the real volumes, under the same names")
    _add_common(command)
    command.add_argument(
        "--protocol", default="trace", metavar="P", help="trace (default), stylegan_v, vlm3d, or a YAML file"
    )
    command.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="groups (fidelity, mask, slices, cost, vbench, clip, ct_clip, lpips, distances) or metrics; default: all",
    )
    command.add_argument(
        "--masks",
        type=Path,
        metavar="DIR",
        help="folder of <case>.nii.gz with VISTA3D ids on the generated volume's grid: adds Dice, Jaccard and HD95 "
        "against the exact mask, its chance (other real patients), ceiling (the real volume) and the skill between",
    )
    command.add_argument("--mask-source", metavar="NAME", help="where the masks come from, for the record")
    command.add_argument(
        "--spacing-mm",
        type=float,
        metavar="X",
        help="compare on isotropic voxels of X mm over the real volume's field of view (default: the protocol's)",
    )
    command.add_argument(
        "--segmenter",
        help="threshold: lungs and bone from HU, no weights; vista3d: 117 classes (default: the protocol's)",
    )
    command.add_argument("--segmenter-weights", metavar="FILE", help="of vista3d: a file, or hub")
    command.add_argument("--ct-clip", default="", metavar="MODULE:FUNCTION", help="your CT-CLIP: evaluation/ct_clip.py")
    command.add_argument("--cache", type=Path, metavar="DIR", help="what is known of real volumes (default: OUT/real)")
    command.add_argument("--groups", nargs="+", metavar="G", help="default: the protocol's, as lung bone")
    _add_network(command)
    command.add_argument("--prompts", type=Path, metavar="CSV", help="columns case_id,prompt; default: the JSON files")
    _add_frames(command)


def _add_network(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="cpu", metavar="D", help="of networks: cpu (default), cuda, cuda:1")
    command.add_argument("--weights", type=Path, metavar="DIR", help="folder of pretrained weights")


def _add_frames(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--frame-spacing-mm", type=float, nargs=3, metavar=("Z", "Y", "X"), help="voxel size of PNG frames"
    )
    command.add_argument(
        "--frame-window-hu", type=float, nargs=2, metavar=("BLACK", "WHITE"), help="HU of black and white PNG pixels"
    )


def _add_common(command: argparse.ArgumentParser, samples: str = "1000") -> None:
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the scores go")
    command.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default 1); changes no number")
    command.add_argument(
        "--bootstrap",
        type=int,
        metavar="N",
        help=f"samples of the 95 %% intervals (default {samples}; 0: none)",
    )


def _add_fidelity(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "fidelity",
        help="Dice, Jaccard and HD95 of label maps that are there already",
        description="Compare two label maps, or two folders of them matched by name (.nii.gz, .nii, .mha; any "
        "orientation and dtype; 0 is background), and write per_case.csv (a line a case and label), summary.json and "
        "report.md. A missed label scores Dice 0 and, as HD95, the diagonal of the box around the reference's labels.",
        epilog=EXIT,
    )
    command.add_argument("generated", type=Path, help="a file, or a folder of files")
    command.add_argument("reference", type=Path, help="a file, or a folder of files under the same names")
    _add_common(command)
    command.add_argument("--ids", type=int, nargs="+", metavar="ID", help="labels to compare (default: all there are)")
    command.add_argument("--strict", action="store_true", help="score a spurious label as a missed one")
    command.add_argument("--resample", action="store_true", help="bring other grids to the reference's (nearest)")
    command.add_argument("--voxels", action="store_true", help="give HD95 in voxels too")


def _add_table(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "table",
        help="print a table of runs from their score files",
        description="Read the scores that the rows of a table have on disk, print the table and write table.md, "
        "table.csv, table.tex and montage.png into RUNS/PROFILE/NAME/. Nothing is computed again.",
    )
    command.add_argument("table", type=Path, help="YAML file, as experiments/table1.yaml")
    command.add_argument("--profile", default="phantom", help="which runs (default: phantom)")
    seeds = command.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, default=0, metavar="K", help="default: 0")
    seeds.add_argument("--seeds", type=int, nargs="+", metavar="K", help="several: mean and spread over seeds")
    command.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    command.add_argument("--width", type=int, metavar="W", help="characters of a line (default: the terminal's)")
    command.add_argument("--no-montage", action="store_true", help="draw no slices")


def _add_compare(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "compare",
        help="compare two methods on the same cases",
        description="Paired comparison of A with B, volume by volume, with 95 %% t intervals over cases. Give several "
        "pairs (seeds) as A B A2 B2 ...; the intervals are then over cases and trainings.",
    )
    command.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run folders that hold scores/: A B [A2 B2 ...]"
    )
    command.add_argument("--metrics", nargs="+", metavar="NAME", help="default: fidelity, skill and slice-to-slice")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the comparison as JSON too")


def _add_lengths(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "lengths",
        help="error with length: distances and steps over the first 64, 128, ... slices",
        description="From finished scorings: every distance whose features were kept, and what happens along z, over "
        "the first L slices and over the slices between two lengths, all on the same volumes, beside the real ones. "
        "Writes lengths.csv, lengths.json and lengths.png.",
        epilog="Exit code 0: done; 1: some volumes could not be read again (they are named); 2: nothing was done.",
    )
    command.add_argument("scores", type=Path, nargs="+", metavar="SCORES", help="folders that `score` wrote, or runs")
    command.add_argument("--labels", nargs="+", metavar="NAME", help="of the scorings (default: their paths)")
    command.add_argument(
        "--lengths", type=int, nargs="+", default=(64, 128, 192, 256), metavar="L", help="default: 64 128 192 256"
    )
    command.add_argument(
        "--cache", type=Path, metavar="DIR", help="that the scorings were given (default: SCORES/real)"
    )
    _add_common(command, "200")
    _add_frames(command)


def _add_memorisation(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "memorisation",
        help="distances to the nearest training slice and volume, against held-out real volumes",
        description="Find the nearest training slice of every generated slice, and the nearest training volume of "
        "every generated volume, over the whole set in the features of one network, and read the distances against "
        "those of real volumes of patients who were not trained on. Writes per_volume.csv, summary.json and "
        "nearest.png.",
        epilog=EXIT,
    )
    command.add_argument("generated", type=Path, metavar="GEN", help="folder of generated volumes")
    command.add_argument("training", type=Path, metavar="TRAIN", help="folder of the volumes that were trained on")
    command.add_argument("heldout", type=Path, metavar="HELDOUT", help="folder of real volumes that were not")
    command.add_argument(
        "--extractor", default="alexnet", metavar="NAME", help="network of slices (default alexnet), as dinov2_vitl14"
    )
    command.add_argument("--protocol", default="trace", metavar="P", help="grid, window and slices (default: trace)")
    command.add_argument("--cache", type=Path, metavar="DIR", help="of features (default: OUT/features)")
    _add_common(command)
    _add_network(command)
    _add_frames(command)


def _add_metrics(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "metrics",
        help="list every metric: what, backbone, weights, range, direction, source",
        description="List every metric, the pretrained network it needs and whether its weights are there.",
    )
    command.add_argument("--weights", type=Path, metavar="DIR", help="folder of pretrained weights")
    command.add_argument("--width", type=int, metavar="W", help="characters of a line (default: the terminal's)")


def _add_weights(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "weights",
        help="fetch or check the pretrained weights of metrics",
        description="check: say which weights are there and whether they are intact. fetch: download them from their "
        "publisher, whole or not at all. Exit code 1: some are absent (check) or cannot be had by download (fetch).",
    )
    command.add_argument("action", choices=("fetch", "check"))
    command.add_argument("names", nargs="*", metavar="NAME", help="as `python -m evaluation metrics` prints them")
    command.add_argument(
        "--weights", type=Path, metavar="DIR", help="folder (default: TRACE_WEIGHTS, else the user's cache)"
    )
