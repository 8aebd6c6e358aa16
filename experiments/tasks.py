"""What there is to do for the rows of a table: tasks, where their files are, and what each depends on.

Layout below `runs/` (or `runs/scratch/<overrides>/`):

    <profile>/prepared/<digest>/               stamp of a prepared cache
    <profile>/trainings/<digest>/              a training, shared by all rows that agree in what it depends on
    <profile>/ground_truth/                    real volumes of the test split, their masks and scores, of all seeds
    <profile>/<experiment>/seed<k>/            config, train/ (refers to the training), volumes/, scores/
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.load import Loaded
from experiments.methods import ANATOMY_CODE, DATA_CODE, FLOW_KEYS, method_of, without
from experiments.stamps import code_digests, fingerprint
from trace_lightning.artifacts import digest, file_digest, read_json
from trace_lightning.config import Experiment
from trace_lightning.data import masks, raft
from trace_lightning.errors import NotEnoughPatients, UserError

if TYPE_CHECKING:
    from evaluation.settings import Settings

STAGES = ("prepare", "train", "generate", "evaluate")  # in this order; --redo of one redoes those after it
GROUND_TRUTH = "ground_truth"
EVALUATION_CODE = ("evaluation/**/*.py", "evaluation/**/*.yaml", *ANATOMY_CODE)
# Of the evaluation: other commands, and what reads and prints scores. No score depends on them.
READING = tuple(
    f"evaluation/{name}.py"
    for name in (
        *("__main__", "options", "report", "listing", "floor", "streaming"),
        *("table", "table_file", "gather", "rows", "marks", "render", "montage", "compare", "paired", "records"),
        *("label_maps", "scored", "lengths", "curves", "memorisation", "nearest"),
    )
)
GENERATING = ("experiments/stages.py", "experiments/predict.py")
TOOLS = tuple(f"trace_lightning/data/{name}.py" for name in ("caches", "doctor", "download", "footprint"))


@dataclass(frozen=True)
class Task:
    """One stage of one or several rows.

    Attributes:
        name: its kind: a stage, or `reference` (the real volumes of the test split, redone with `prepare`).
        experiment: the keys it works with.
        folder: where its stamp, log and results are.
        needs: the tasks that must be done before.
        rows: the names of the rows that wait for it, with their seeds where a table is run over several.
    """

    name: str
    experiment: Experiment
    folder: Path
    needs: tuple[Task, ...] = ()
    rows: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, Path]:
        """What identifies the task."""
        return self.name, self.folder

    @property
    def stage(self) -> str:
        """The stage that `--redo` names."""
        return "prepare" if self.name == "reference" else self.name

    @property
    def log(self) -> Path:
        """The file that takes what the work prints."""
        return self.folder / "run.log"

    @property
    def lock(self) -> Path:
        """The lock of the process that does the work."""
        return self.folder / f".{self.name}.lock"

    @property
    def claim(self) -> Path:
        """The lock of the run that the work belongs to, held from the run's start."""
        return self.folder / f".{self.name}.claim"


@dataclass(frozen=True)
class Folders:
    """Where the files of one profile and seed are."""

    profile: Path
    seed: int

    @classmethod
    def of(cls, loaded: Loaded) -> Folders:
        """Return the folders of a resolved experiment: overrides that change results have folders of their own."""
        run = loaded.experiment.run
        root = Path(run.runs_dir)
        if loaded.scratch:
            text = ",".join(loaded.overrides)
            root = root / "scratch" / f"{re.sub(r'[^A-Za-z0-9_.=,+-]', '', text)[:40]}-{digest(text)[:6]}"
        return cls(root / loaded.experiment.profile, loaded.experiment.seed)

    def run(self, experiment: str) -> Path:
        """Return the folder of a row."""
        return self.profile / experiment / f"seed{self.seed}"

    @property
    def ground_truth(self) -> Path:
        """The folder of the real volumes."""
        return self.profile / GROUND_TRUTH


def tasks_of(rows: Sequence[Loaded], ground_truth: bool) -> list[Task]:
    """Return the tasks of a table's rows, each after those it needs; what rows share is one task.

    Args:
        rows: the resolved experiments of one profile; the same experiment may come with several seeds.
        ground_truth: whether the real volumes are scored too, as a row of their own.

    Raises:
        UserError: two rows are tested on different data.
    """
    _refuse_other_tests([row.experiment for row in rows])
    several = len({row.experiment.seed for row in rows}) > 1
    folders = Folders.of(rows[0])
    prepares: dict[Path, list[Experiment]] = {}
    trainings: dict[Path, list[Experiment]] = {}
    for row in rows:
        experiment = row.experiment
        prepares.setdefault(_prepared(folders, experiment), []).append(experiment)
        trainings.setdefault(_training(folders, experiment), []).append(experiment)

    def names(experiments: Sequence[Experiment]) -> tuple[str, ...]:
        return tuple(row_name(experiment, several) for experiment in experiments)

    prepare = {folder: Task("prepare", group[0], folder, (), names(group)) for folder, group in prepares.items()}
    # The row that asks for the fewest patients is there if any row is.
    modest = min((row.experiment for row in rows), key=num_patients)
    waiting = names([row.experiment for row in rows]) + ((GROUND_TRUTH,) if ground_truth else ())
    reference = Task("reference", modest, folders.ground_truth, (prepare[_prepared(folders, modest)],), waiting)
    train = {
        folder: Task("train", group[0], folder, (prepare[_prepared(folders, group[0])],), names(group))
        for folder, group in trainings.items()
    }
    tasks = [*prepare.values(), reference, *train.values()]
    if ground_truth:
        tasks.append(Task("evaluate", modest, folders.ground_truth, (reference,), (GROUND_TRUTH,)))
    for row in rows:
        experiment, folder = row.experiment, Folders.of(row).run(row.experiment.name)
        needs = (prepare[_prepared(folders, experiment)], train[_training(folders, experiment)], reference)
        generate = Task("generate", experiment, folder, needs, names([experiment]))
        tasks += [generate, Task("evaluate", experiment, folder, (generate, reference), names([experiment]))]
    return tasks


def row_name(experiment: Experiment, several: bool) -> str:
    """Return what a row is called in messages: with its seed where there are several."""
    return f"{experiment.name} (seed {experiment.seed})" if several else experiment.name


def stages_from(redo: str | None) -> tuple[str, ...]:
    """Return the stages that `--redo` of a stage redoes: itself and those after it."""
    return STAGES[STAGES.index(redo) :] if redo else ()


def depends(task: Task) -> dict[str, dict[str, Any]]:
    """Return what a task's result depends on: keys, code, and the results of the tasks it needs (None: not there)."""
    keys, code = _KEYS[task.name](task.experiment), _code(task)
    upstream = {need.name: fingerprint(need.folder, need.name) for need in task.needs if need.name != "prepare"}
    return {"config": dict(_flat(keys)), "code": code_digests(code, without=(*READING, *TOOLS)), "upstream": upstream}


def discard(task: Task) -> None:
    """Remove a task's result, stamps first, and for `prepare` the cache behind it."""
    for name in (f"{task.name}.json", f"{task.name}.begun.json", f"{task.name}.failed.json", "unavailable.json"):
        (task.folder / name).unlink(missing_ok=True)
    results = {
        "prepare": _cached,
        "reference": lambda task: [task.folder / kind for kind in ("volumes", "masks", "own_masks")],
        "train": lambda task: list(task.folder.glob("[!.]*")),  # but the locks
        "generate": lambda task: [task.folder / "volumes"],
        "evaluate": lambda task: [task.folder / "scores"],
    }
    for path in results[task.name](task):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def is_intact(task: Task) -> bool:
    """Tell whether what a finished task left is still all there is to have.

    A cache may be moved or cleared, and is filled again. Scores are added where weights of a metric's network are there
    now that were not, or were others; where weights have gone, what was scored by them stays.
    """
    if task.name == "evaluate":
        scored = read_json(task.folder / "evaluate.json")["produced"].get("weights", {})
        return evaluation_weights(task.experiment).items() <= scored.items()
    if task.name != "prepare":
        return True
    from trace_lightning.data import cache

    return cache.is_prepared(task.experiment)


def num_patients(experiment: Experiment) -> float:
    """Return how many training patients a row asks for."""
    return experiment.data.num_train_patients * experiment.data.train_fraction


def _prepared(folders: Folders, experiment: Experiment) -> Path:
    return folders.profile / "prepared" / digest(prepare_keys(experiment))


def _training(folders: Folders, experiment: Experiment) -> Path:
    return folders.profile / "trainings" / digest(training_keys(experiment))


def prepare_keys(experiment: Experiment) -> dict[str, Any]:
    """Return the keys that the prepared data depends on; flow is prepared for the rows that use it."""
    from trace_lightning.data.cache import mask_flow_classes

    moot = ["data.root", "data.num_workers", "data.flow_weights", "data.vista3d_weights"]
    moot += ["data.prompt", "data.prompt_length_mm"]
    moot += ["data.phantom"] if experiment.data.root else []
    moot += [] if experiment.model.flow else ["data.skips"]
    keys = {
        "data": asdict(experiment.data),
        "flow_weights": raft.weights_stamp(experiment.data),
        "mask_weights": masks.weights_stamp(experiment.data),
    }
    of_model = {"flow": experiment.model.flow, "mask_flow_classes": mask_flow_classes(experiment)}
    return {**without(keys, moot), "model": of_model, "files": _files(experiment, "train", "val", "test")}


def training_keys(experiment: Experiment) -> dict[str, Any]:
    """Return the keys that a training depends on, and the files of its data."""
    keys = method_of(experiment).training_keys(experiment)
    return {
        **without(keys, ["data.phantom"] if experiment.data.root else []),
        "files": _files(experiment, "train", "val"),
    }


def generate_keys(experiment: Experiment) -> dict[str, Any]:
    """Return the keys that generated volumes depend on, those of the training among them."""
    return training_keys(experiment) | method_of(experiment).generation_keys(experiment)


def test_keys(experiment: Experiment) -> dict[str, Any]:
    """Return the keys that the real volumes of the test split depend on."""
    of_training = ["train_fraction", "num_train_patients", "num_val_patients", "skips", "flow_stride"]
    keys = without(prepare_keys(experiment), ["model", *FLOW_KEYS, *(f"data.{key}" for key in of_training)])
    return keys | {"files": _files(experiment, "test")}


def evaluation_keys(experiment: Experiment) -> dict[str, Any]:
    """Return the keys that scores depend on; the protocol by its contents, the segmenter's weights by theirs."""
    keys = without({"evaluate": asdict(experiment.evaluate)}, ["evaluate.segmenter_weights"])
    return keys | {"protocol": digest(evaluation_settings(experiment).protocol())}


def evaluation_settings(experiment: Experiment) -> Settings:
    """Return the protocol that the volumes of a row are scored by."""
    from evaluation.settings import read_protocol

    keys = asdict(experiment.evaluate)
    name = keys.pop("protocol")
    del keys["metrics"]
    if keys["segmenter"] != "vista3d":
        del keys["segmenter_weights"]
    return read_protocol(name, **keys, mask_source=experiment.data.mask_source)


def evaluation_weights(experiment: Experiment) -> dict[str, str]:
    """Return measure -> what identifies its pretrained weights, for all that can be computed here now."""
    from evaluation.measure import Resources
    from evaluation.selection import select

    selection = select(experiment.evaluate.metrics, evaluation_settings(experiment), Resources())
    return {m.name: found for m in selection.measures if m.absent() is None and (found := m.weights())}


_KEYS = {
    "prepare": prepare_keys,
    "reference": test_keys,
    "train": training_keys,
    "generate": generate_keys,
    "evaluate": evaluation_keys,
}


def _cached(task: Task) -> list[Path]:
    from trace_lightning.data import cache

    tree = [] if task.experiment.data.root else [cache.data_root(task.experiment)]
    return [cache.volumes_folder(task.experiment), *tree]


def _code(task: Task) -> tuple[str, ...]:
    method = method_of(task.experiment)
    return {
        "prepare": DATA_CODE,
        "reference": (*DATA_CODE, "experiments/stages.py"),
        "train": (*DATA_CODE, *method.training_code),
        "generate": (*DATA_CODE, *method.training_code, *method.generation_code, *GENERATING),
        "evaluate": EVALUATION_CODE,
    }[task.name]


def _files(experiment: Experiment, *parts: str) -> dict[str, str]:
    """Return what identifies data on disk: tables by content, volumes and masks by size. The folder may move."""
    if not experiment.data.root:
        return {}
    root = Path(experiment.data.root)
    return _table_digests(root) | {"volumes": _volume_sizes(experiment, parts)}


def _volume_sizes(experiment: Experiment, parts: tuple[str, ...]) -> str:
    from trace_lightning.data import cache, ct_rate

    data = experiment.data
    if parts == ("test",):  # the same whatever a row is trained on
        data = replace(data, num_train_patients=1, train_fraction=1.0, num_val_patients=0)
    try:
        split = ct_rate.split(_index(Path(data.root), data.version), data)
    except NotEnoughPatients:
        return "not enough patients"  # said by the task itself
    scans = [scan for part in parts for scan in getattr(split, part)]
    return digest([[s.case_id, *(path.stat().st_size for path in cache.source_files(s, experiment))] for s in scans])


@cache
def _index(root: Path, version: str):
    from trace_lightning.data import ct_rate

    return ct_rate.read_index(root, version)


@cache
def _table_digests(root: Path) -> dict[str, str]:
    if not (root / "dataset").is_dir():
        raise UserError(f"data.root={root}: no such folder, or no dataset/ in it (CT-RATE's layout)")
    tables = sorted(path for kind in ("*.csv", "*.txt") for path in (root / "dataset").glob(f"*/{kind}"))
    return {str(path.relative_to(root)): file_digest(path) for path in tables}


def _refuse_other_tests(experiments: Sequence[Experiment]) -> None:
    first = dict(_flat(test_keys(experiments[0])))
    for other in experiments[1:]:
        for key, value in _flat(test_keys(other)):
            if first.get(key) != value:
                raise UserError(
                    f"{experiments[0].name} and {other.name} are tested on different data ({key}: {first.get(key)} "
                    f"and {value}); the rows of a table share their test data"
                )


def _flat(keys: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in keys.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
