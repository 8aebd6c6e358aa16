"""Twelve faults in four stages: after each, repeating the command ends as if nothing had happened.

`make test-faults` prints the matrix and writes it to docs/reliability.md.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import strikes
from command import Injection, warm_up
from matrix import Cell, Matrix
from project import until, write_tree
from scene import Scene, mounted_disk, poison, unmount_below

from trace_lightning.artifacts import read_json

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not Path("/proc/mounts").is_file(), reason="looks at processes and mounts through /proc"),
]
STAGES = ("prepare", "train", "generate", "evaluate")
AFTER = {"prepare": 3, "train": 5, "generate": 12, "evaluate": 5}  # reports: some of the work is done, some is left
DAY_S = 86400


class Stage:
    """A cell's project before its stage, and what the cell needs to know.

    Attributes:
        name: the stage.
        scene: the project.
        finished: the results of a run that nothing interrupted.
    """

    def __init__(self, name: str, scene: Scene, finished: dict[str, bytes]):
        self.name, self.scene, self.finished = name, scene, finished

    def injection(self, strike: Callable, mid: bool = True, pause_s: float = 0.0) -> Injection:
        """Return a strike in the middle of the stage, or before its first line."""
        return Injection(self.name, strike, AFTER[self.name] if mid else None, pause_s)

    def fails(self, code: int, says: str, injection: Injection | None = None, prelude: Callable | None = None) -> str:
        """Run with a fault; check how it ends, and that nothing partial lies under a final name."""
        run = self.scene.run(injection, prelude)
        assert run.end() == code, run.output()
        assert re.search(says, run.output()), run.output()
        self.scene.need_whole(self.finished)
        return run.output()

    def killed(self) -> None:
        """Run, and kill it in the middle of the stage."""
        self.fails(-9, "", self.injection(partial(strikes.send, signal.SIGKILL, True), pause_s=0.2))


def signalled(name: str, cell: Stage) -> str:
    number, to_group, code = strikes.SIGNALS[name]
    strike = partial(strikes.send, number, to_group)
    says = "" if name == "kill -9" else "repeat the command to continue"
    cell.fails(code, says, cell.injection(strike, pause_s=0.2))
    if name == "kill -9":
        return "dies; goes on where it was"
    if cell.name == "train":
        saved = [read_json(path)["step"] for path in cell.scene.root.glob("runs/tiny/trainings/*/*.ckpt.json")]
        assert AFTER["train"] <= max(saved) <= AFTER["train"] + 2  # not the last of every second step, but where it was
        return f"saves its step, exit {code}"
    return f"files in order, exit {code}"


def full_disk(cell: Stage) -> str:
    root = cell.scene.root
    cell.fails(2, "No space left on device", cell.injection(partial(strikes.fill_disk, root)))
    (root / "filler").unlink()
    return "refused by name, exit 2"


def read_only(cell: Stage) -> str:
    strike = partial(strikes.forbid_writing, cell.scene.root / "cache")
    cell.fails(2, "Read-only file system|Permission denied", cell.injection(strike, mid=False))
    unmount_below(cell.scene.root / "runs")
    unmount_below(cell.scene.root / "cache")
    return "refused by name, exit 2"


def two_processes(cell: Stage) -> str:
    at_work = cell.scene.root / "at_work"
    pause_s = 3.0 if cell.name == "evaluate" else 0.3  # few reports are left there, and the second has to start
    first = cell.scene.run(cell.injection(partial(strikes.flag, at_work), pause_s=pause_s))
    until(at_work.exists, seconds=600)
    second = cell.scene.run()
    code = second.end()
    assert first.end() == 0, first.output()
    assert str(first.pid) in second.output(), second.output()
    assert code in (0, 2), second.output()
    return "the second is told who works, exit 2" if code == 2 else "the second is told who works, and waits"


def clock_jump(cell: Stage) -> str:
    run = cell.scene.run(cell.injection(strikes.shake_clock))
    assert run.end() == 0, run.output()
    for path in [*cell.scene.root.rglob("*")]:
        if path.is_file():
            os.utime(path, (time.time() + DAY_S, time.time() + DAY_S))
    return "no effect"


def corrupted(cell: Stage) -> str:
    cell.killed()
    scene = cell.scene
    file = {
        "prepare": "cache/volumes/*/*/image.npy",
        "train": "runs/tiny/trainings/*/*.ckpt",
        "generate": "runs/tiny/full/seed0/volumes/*.nii.gz",
        "evaluate": "runs/tiny/full/seed0/scores/per_case/*.json",
    }[cell.name]
    scene.truncate(scene.newest(file))
    if cell.name == "train":
        run = scene.run()
        assert run.end() == 0, run.output()
        (record,) = scene.root.glob("runs/tiny/trainings/*/training.json")
        (incident,) = read_json(record)["incidents"]
        assert re.search(r"step\d+.ckpt: damaged .*; the training went on from step \d", incident)
        return "falls back to the checkpoint before, said and recorded"
    return "made again"


def changed_code(cell: Stage) -> str:
    cell.killed()
    file = {
        "prepare": "trace_lightning/data/cache.py",
        "train": "trace_lightning/module.py",
        "generate": "trace_lightning/sampling/overlap.py",
        "evaluate": "evaluation/fidelity.py",
    }[cell.name]
    says = rf"{cell.name} was (begun|done) with something else.*\n.*code: {file} changed"
    cell.fails(2, says, None, partial(strikes.change_code, file))
    return "refused, the file is named, exit 2"


def not_a_number(cell: Stage) -> str:
    scene = cell.scene
    if cell.name == "train":
        cell.fails(2, r"the loss became nan at step 6 on train_\d", None, strikes.nan_loss)
        (bad,) = scene.root.glob("runs/tiny/trainings/*/bad_batch.json")
        assert len(read_json(bad)["samples"]) == 4
        return "stops, cases and slices saved, exit 2"
    if cell.name == "generate":
        cell.fails(2, "refused to write, the volume holds NaN", None, strikes.nan_volume)
        return "the volume is not written, exit 2"
    if cell.name == "prepare":
        tree = scene.root.parent / "tree"
        shutil.copytree(scene.tree, tree)
        original, scene.tree = scene.tree, tree
        victim = next(tree.rglob("train_1_a_1.nii.gz"))
    else:
        original, victim = None, sorted(scene.root.glob("runs/tiny/full/seed0/volumes/*.nii.gz"))[0]
    whole = victim.read_bytes()
    poison(victim)
    run = scene.run()
    assert run.end() == 2, run.output()
    assert re.search(rf"{victim.name}.*NaN or infinite", run.output()), run.output()
    victim.write_bytes(whole)
    if original is not None:
        scene.tree = original
        for folder in scene.root.glob("cache/volumes/*"):  # of the copy: another dataset
            shutil.rmtree(folder)
    return "the file is named, exit 2"


def out_of_memory(cell: Stage) -> str:
    of_device = cell.name in ("train", "generate")
    says = {"train": r"lower train.batch_size \(now 4\)", "generate": r"lower sample.volumes_abreast \(now 1\)"}
    strike = partial(strikes.lack_memory, of_device)
    cell.fails(2, says.get(cell.name, "no memory is left .*lower run.jobs"), cell.injection(strike))
    return "names the key to lower, exit 2"


FAULTS: dict[str, Callable[[Stage], str]] = {
    **{name: partial(signalled, name) for name in strikes.SIGNALS},
    "full disk": full_disk,
    "read-only directory": read_only,
    "two processes": two_processes,
    "clock jumps": clock_jump,
    "corrupted file": corrupted,
    "changed code": changed_code,
    "NaN": not_a_number,
    "out of memory": out_of_memory,
}


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("ct"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Scene:
    """A project that ran to its end, not to be changed."""
    warm_up()
    scene = Scene.new(tmp_path_factory.mktemp("finished") / "project", tree)
    first, run = scene.run(), None
    assert first.end() == 0, first.output()  # loads what is loaded once
    for name in ("runs", "cache"):
        shutil.rmtree(scene.root / name)
    run = scene.run()
    assert run.end() == 0, run.output()
    scene.seconds, scene.found = run.seconds, scene.results()
    assert len(scene.found) > 20
    return scene


@pytest.fixture(scope="session")
def matrix(finished: Scene) -> Iterator[Matrix]:
    matrix = Matrix(tuple(FAULTS), STAGES, finished.seconds)
    yield matrix
    matrix.show()
    if path := os.environ.get("TRACE_RELIABILITY"):
        matrix.write(Path(path))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_table_is_the_same_after(fault: str, stage: str, finished: Scene, matrix: Matrix, tmp_path: Path):
    root = tmp_path / "project"
    disk = fault == "full disk"
    if disk and not mounted_disk(root):
        pytest.skip("a small disk needs root")
    try:
        cell = Stage(stage, finished.before(stage, root), finished.found)
        outcome = FAULTS[fault](cell)
        matrix.cells[fault, stage] = Cell(outcome, cell.scene.recover(finished.found))
    finally:
        unmount_below(root)
