import errno
import json
import multiprocessing
import os
import resource
import signal
import time
from collections import namedtuple
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from trace_lightning.anatomy.labels import BONE, LUNG
from trace_lightning.artifacts import write_array
from trace_lightning.config import PhantomConfig
from trace_lightning.data import cache
from trace_lightning.data.ct_rate import read_index, split
from trace_lightning.data.flow import dis_flow, mask_flow, to_shares
from trace_lightning.data.masks import class_map
from trace_lightning.data.pairs import FlowOf
from trace_lightning.data.preprocess import hu_to_unit
from trace_lightning.errors import UserError


@pytest.fixture
def experiment(full_tree, shared_cache, make_experiment):
    return make_experiment(full_tree.root, shared_cache)


@pytest.fixture
def fresh(full_tree, tmp_path, make_experiment):
    """The same experiment with a cache of its own."""
    return make_experiment(full_tree.root, tmp_path / "cache")


def files_of(folder):
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in paths}


def test_prepare_writes_each_volume_on_the_models_grid(experiment, quiet):
    prepared = cache.prepare(experiment, quiet)
    assert [len(prepared.cases(part)) for part in ("train", "val", "test")] == [3, 1, 2]
    for case in (*prepared.cases("train"), *prepared.cases("val"), *prepared.cases("test")):
        assert case.image.shape == case.labels.shape == case.grid.shape == (12, 32, 32)
        assert (case.image.dtype, case.labels.dtype) == (np.int16, np.uint8)
        assert isinstance(case.image, np.memmap)
        assert case.image.min() >= -1000
        assert set(np.unique(case.labels)) == {0, LUNG, BONE}
        assert case.image[case.labels == LUNG].mean() < -700
        percent = case.meta["percent"]
        assert percent["lung"] == pytest.approx(100 * (case.labels == LUNG).mean(), abs=1e-3)
        assert percent["background"] == pytest.approx(100 * (case.labels == 0).mean(), abs=1e-3)
    assert len(prepared.prompts) == 5  # four findings, and one form for the two without


def test_flow_is_kept_for_training_pairs_only(experiment, quiet):
    prepared = cache.prepare(experiment, quiet)
    for case in prepared.cases("train") + prepared.cases("val"):
        assert [len(np.load(cache.flow_path(case.folder, FlowOf(k)))) for k in (1, 2, 4)] == [11, 5, 2]
        grey = np.rint((hu_to_unit(case.image[[4, 8]].astype(np.float32), experiment.data) + 1) * 127.5)
        expected = to_shares(dis_flow(*grey.astype(np.uint8)), 4)
        np.testing.assert_allclose(case.flow(4, 8), expected, rtol=1e-3, atol=1e-6)
        assert np.abs(expected).max() > 0.005
        for i, j in ((3, 4), (6, 8), (4, 8)):
            classes = class_map(case.labels, 3)
            np.testing.assert_array_equal(case.mask_flow(i, j, 3), mask_flow(classes[i], classes[j], 3, 4))
    assert not any("flow" in path.name for case in prepared.cases("test") for path in case.folder.iterdir())


@pytest.mark.parametrize(("flow", "share", "names"), [(True, 0.0, {"flow"}), (False, 0.4, set())])
def test_flow_is_prepared_where_a_row_trains_on_it(fresh, quiet, flow, share, names):
    fresh.model.flow, fresh.train.mask_flow = flow, share
    (case, *_) = cache.prepare(fresh, quiet).cases("train")
    assert {path.stem.rpartition("_")[0] for path in case.folder.glob("*flow*")} == names
    fresh.model.flow, fresh.train.mask_flow, fresh.model.num_mask_classes = True, 0.1, 2
    assert not cache.is_prepared(fresh)
    cache.prepare(fresh, quiet)
    assert {path.stem.rpartition("_")[0] for path in case.folder.glob("*flow*")} == {"flow", "mask_flow_2"}


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counted by Linux' /proc")
def test_many_cases_are_read_with_few_open_files(fresh, quiet, monkeypatch):
    """Systems allow a process some hundred open files; a map holds one."""
    monkeypatch.setattr(cache, "_map", lru_cache(maxsize=4)(cache._map.__wrapped__))
    cases = cache.prepare(fresh, quiet).cases("train")
    before = open_files()
    for case in cases * 2:
        assert case.image[3].max() > case.labels[3].max() > case.flow(4, 8).max()
        assert open_files() <= before + 4


def test_a_map_is_of_the_file_that_lies_there(tmp_path):
    case = cache.PreparedCase(tmp_path, prompt="")
    for value in (1, 2):
        write_array(tmp_path / "image.npy", np.full((2, 3, 4), value, np.int16))
        assert (case.image == value).all()


def test_the_flow_of_each_skip_has_a_quality(experiment, quiet):
    prepared = cache.prepare(experiment, quiet)
    for case in prepared.cases("train"):
        quality = case.meta["flow"]
        assert list(quality) == ["1", "2", "4"]
        assert [of_skip["pairs_checked"] for of_skip in quality.values()] == [8, 5, 2]
        assert all(0 < of_skip["error_pixels"] < 1 for of_skip in quality.values())
        assert all(80 < of_skip["consistent_percent"] <= 100 for of_skip in quality.values())
    assert all(case.meta["flow"] == {} for case in prepared.cases("test"))


def test_a_flow_without_quality_is_never_left(fresh, quiet, monkeypatch):
    """Stopped between the two files of a skip: the flow is what comes last."""
    write = cache.write_array

    def stop_at_flow(path, array):
        if path.name.startswith("flow"):
            raise KeyboardInterrupt
        write(path, array)

    monkeypatch.setattr(cache, "write_array", stop_at_flow)
    with pytest.raises(KeyboardInterrupt):
        cache.prepare(fresh, quiet)
    monkeypatch.undo()
    for case in cache.prepare(fresh, quiet).cases("train"):
        assert list(case.meta["flow"]) == ["1", "2", "4"]


def test_a_second_prepare_does_nothing(experiment, quiet):
    prepared = cache.prepare(experiment, quiet)
    before = files_of(prepared.folder)
    calls = []
    cache.prepare(experiment, lambda done, total, note="": calls.append((done, total)))
    assert calls == []
    assert files_of(prepared.folder) == before


def test_progress_counts_volumes(fresh):
    calls = []
    cache.prepare(fresh, lambda done, total, note="": calls.append((done, total, note)))
    assert [call[:2] for call in calls] == [(n, 6) for n in range(7)]
    assert calls[0][2].startswith("train_")


def test_other_skips_patients_and_rows_share_the_arrays(fresh, quiet):
    small = deepcopy(fresh)
    small.data.skips, small.data.num_test_patients, small.data.train_fraction = [1], 1, 0.3
    small.model.num_mask_classes, small.train.batch_size, small.seed = 2, 1, 7
    folder = cache.prepare(small, quiet).folder
    before = files_of(folder)
    assert cache.prepare(fresh, quiet).folder == folder
    after = files_of(folder)
    changed = {name for name, time_ns in before.items() if after[name] != time_ns}
    assert {name.split("/")[1] for name in changed} <= {"meta.json"}  # gains the quality of the new flow
    assert any(name.endswith("flow_4.npy") for name in after.keys() - before.keys())


def test_the_digest_names_what_the_arrays_depend_on(experiment, full_tree, tmp_path):
    same = {
        "num_train_patients": 1, "train_fraction": 0.5, "num_val_patients": 0, "num_test_patients": 1, "split_seed": 3,
        "reconstructions": "all", "skips": [3], "num_workers": 2, "min_slices": 2, "spacing_mm": 9.0,
        "flow_model": "raft_small", "flow_weights": "x.pth", "vista3d_weights": "x.pt", "prompt": "both",
        "prompt_length_mm": True,
    }  # fmt: skip
    other = {
        "root": str(tmp_path), "mask_source": "phantom", "size": 64, "in_plane": "resample", "spacing_z_mm": 2.0,
        "hu_min": -900.0, "hu_max": 600.0, "flow_source": "phantom", "flow_stride": 2,
        "flow_resolution": "original", "version": "v1", "repair": True,
    }  # fmt: skip
    assert {"phantom", *same, *other} == set(vars(experiment.data))  # a new key has to be put on a side

    def folder(key, value):
        changed = deepcopy(experiment)
        setattr(changed.data, key, value)
        return cache.volumes_folder(changed)

    here = cache.volumes_folder(experiment)
    assert all(folder(key, value) == here for key, value in same.items())
    folders = [folder(key, value) for key, value in other.items()]
    assert len({here, *folders}) == len(other) + 1
    resampled = deepcopy(experiment)
    resampled.data.in_plane = "resample"
    finer = deepcopy(resampled)
    finer.data.spacing_mm = 0.5
    assert cache.volumes_folder(resampled) != cache.volumes_folder(finer)


def test_the_phantoms_digest_names_its_settings(experiment):
    experiment = deepcopy(experiment)
    experiment.data.root = None
    before = cache.data_root(experiment), cache.volumes_folder(experiment)
    experiment.data.phantom.seed = 1
    after = cache.data_root(experiment), cache.volumes_folder(experiment)
    assert before[0].parent == after[0].parent
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_another_prompt_prepares_nothing(experiment, quiet):
    """Prompts are worded from the tables when they are read; 12 slices of 6 mm are 72 mm."""
    prepared = cache.prepare(experiment, quiet)
    before = files_of(prepared.folder)
    other = deepcopy(experiment)
    other.data.prompt_length_mm = True
    again = cache.prepare(other, quiet)
    assert files_of(prepared.folder) == before
    prompts = {case.case_id: case.prompt for case in again.cases("train")}
    impression = {scan.case_id: scan.impression for scan in again.split.train}
    assert prompts == {c: f"58 years old male, scan length 72 mm: {text}" for c, text in impression.items()}
    assert set(prompts.values()) < set(again.prompts)
    assert [case.prompt for case in cache.test_cases(other)] == ["58 years old male, scan length 72 mm"] * 2
    other.data.spacing_z_mm = 9.0  # other slices, the same scan
    assert cache.prepare(other, quiet).cases("train")[0].prompt in prompts.values()


def test_the_size_is_known_before(fresh, experiment, quiet):
    files = cache.files_to_write(fresh)
    prepared = cache.prepare(fresh, quiet)
    written = {
        path: path.stat().st_size for path in prepared.folder.rglob("*") if path.name.endswith((".npy", "meta.json"))
    }
    assert files.keys() == written.keys()
    for path, size in files.items():
        if path.suffix == ".npy":
            assert size == written[path]
    assert sum(files.values()) == pytest.approx(sum(written.values()), rel=0.2)
    assert cache.files_to_write(fresh) == {}
    prepared.cases("train")[0].folder.joinpath("flow_2.npy").unlink()
    assert [path.name for path in cache.files_to_write(fresh)] == ["flow_2.npy"]


def test_the_size_is_known_before_the_phantom_is_there(make_experiment, tmp_path, quiet):
    experiment = make_experiment(tmp_path, tmp_path / "cache")
    data = experiment.data
    data.root, data.mask_source, data.flow_source = None, "phantom", "phantom"
    data.num_train_patients, data.num_val_patients, data.num_test_patients = 8, 2, 2
    data.phantom = PhantomConfig(10, 2, 0, 32, 360.0, [18.0, 20.0])
    estimate = sum(cache.files_to_write(experiment).values())
    cache.prepare(experiment, quiet)
    written = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert estimate == pytest.approx(sum(path.stat().st_size for path in written), rel=0.2)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(fresh, quiet, monkeypatch):
    needed = sum(cache.files_to_write(fresh).values())
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 0, needed - 1))
    with pytest.raises(
        UserError, match=rf"preparing takes {needed / 1e6:.1f} MB in .*, where {needed / 1e6:.1f} MB are free"
    ):
        cache.prepare(fresh, quiet)
    assert not cache.volumes_folder(fresh).exists()
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 0, needed))
    assert len(cache.prepare(fresh, quiet).cases("train")) == 3


def test_a_replaced_volume_is_prepared_again(tree, tmp_path, make_experiment, make_chest, quiet):
    for name in ("train_1_a_1", "train_2_a_1", "valid_1_a_1"):
        tree.add(name, make_chest())
    experiment = make_experiment(tree.write_tables().root, tmp_path / "cache")
    data = experiment.data
    data.num_train_patients, data.num_val_patients, data.num_test_patients = 2, 0, 1
    folder = cache.prepare(experiment, quiet).folder
    before = files_of(folder)
    tree.write_volume("train_2_a_1", make_chest(seed=9))
    cache.prepare(experiment, quiet)
    changed = {name for name, time_ns in files_of(folder).items() if before[name] != time_ns}
    names = [
        "image.npy",
        "labels.npy",
        "meta.json",
        *(f"{of}_{k}.npy" for of in ("flow", "mask_flow_3") for k in (1, 2, 4)),
    ]
    assert changed == {f"train_2_a_1/{name}" for name in names}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path, hu, tree: path.write_bytes(path.read_bytes()[:-2000]), "may be truncated"),
        (lambda path, hu, tree: tree.write_volume("train_1_a_1", np.stack([hu, hu])), "this file has 4"),
        (lambda path, hu, tree: tree.write_volume("train_1_a_1", np.where(hu > 400, np.nan, hu)), "voxels are NaN"),
        (lambda path, hu, tree: tree.write_volume("train_1_a_1", hu[:5]), "5 slices on the model's grid, below"),
    ],
    ids=["truncated", "4-D", "NaN", "short"],
)
def test_a_bad_volume_is_named_and_leaves_nothing(tree, tmp_path, make_experiment, make_chest, quiet, damage, message):
    for name in ("train_1_a_1", "valid_1_a_1"):
        tree.add(name, make_chest())
    experiment = make_experiment(tree.write_tables().root, tmp_path / "cache")
    experiment.data.num_train_patients, experiment.data.num_val_patients, experiment.data.num_test_patients = 1, 0, 1
    damage(tree.path("train_1_a_1"), make_chest(), tree)
    with pytest.raises(UserError, match=f"train_1_a_1.nii.gz: .*{message}"):
        cache.prepare(experiment, quiet)
    folder = cache.volumes_folder(experiment)
    assert not folder.is_dir() or {path.name for path in folder.iterdir()} == {".lock", "identity.json"}


def _prepare_then_die(experiment, after):
    def progress(done, total, note=""):
        if done == after:
            os.kill(os.getpid(), signal.SIGKILL)

    write = cache.write_array

    def write_slowly(path, array):
        write(path, array)
        time.sleep(0.05)

    cache.write_array = write_slowly
    cache.prepare(experiment, progress)


def test_a_killed_prepare_is_continued(fresh, experiment, quiet):
    """Killed between volumes and in the middle of one: what is there is whole, and the end is the same."""
    expected = cache.prepare(experiment, quiet)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_prepare_then_die, args=(fresh, 2))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    folder = cache.volumes_folder(fresh)
    done = [path.name for path in folder.iterdir() if path.is_dir()]
    assert len(done) == 2

    process = context.Process(target=_prepare_then_die, args=(fresh, None))
    process.start()
    while process.is_alive() and not any(path.name.startswith(".tmp-") for path in folder.iterdir()):
        time.sleep(0.005)
    process.kill()
    process.join()
    for name in (path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".tmp-")):
        assert json.loads((folder / name / "meta.json").read_text())["grid"]["shape"] == [12, 32, 32]

    before = files_of(folder)
    prepared = cache.prepare(fresh, quiet)
    assert not [path for path in folder.rglob(".tmp-*")]
    assert all(files_of(folder)[f"{name}/image.npy"] == before[f"{name}/image.npy"] for name in done)
    for part in ("train", "val", "test"):
        for ours, theirs in zip(prepared.cases(part), expected.cases(part), strict=True):
            assert ours.case_id == theirs.case_id
            np.testing.assert_array_equal(ours.image, theirs.image)
            np.testing.assert_array_equal(ours.labels, theirs.labels)


def _prepare_on_a_full_disk(experiment, answer):
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        cache.prepare(experiment, lambda done, total, note="": None)
    except OSError as error:
        answer.put(error.errno)


def test_a_full_disk_is_named_and_leaves_nothing_half(fresh, quiet):
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    process = context.Process(target=_prepare_on_a_full_disk, args=(fresh, answer))
    process.start()
    assert answer.get(timeout=300) == errno.EFBIG
    process.join()
    assert files_of(cache.volumes_folder(fresh)).keys() <= {"identity.json"}
    assert len(cache.prepare(fresh, quiet).cases("train")) == 3


def _prepare_quietly(experiment):
    cache.prepare(experiment, lambda done, total, note="": None)


def test_processes_that_prepare_at_once_do_no_harm(fresh, quiet):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_prepare_quietly, args=(fresh,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    before = files_of(cache.volumes_folder(fresh))
    cache.prepare(fresh, quiet)
    assert files_of(cache.volumes_folder(fresh)) == before


def test_what_a_method_and_the_evaluation_are_given(experiment, full_tree, quiet):
    cache.prepare(experiment, quiet)
    scans = {scan.case_id: scan for scan in split(read_index(full_tree.root), experiment.data).test}
    cases = cache.test_cases(experiment)
    assert [case.case_id for case in cases] == list(scans)
    for case in cases:
        assert case.prompt == scans[case.case_id].prompt("impression") == "58 years old male"
        assert case.labels.shape == case.grid.shape == (12, 32, 32)
        reference = cache.reference_volume(experiment, case.case_id)
        assert reference.hu.shape == (12, 40, 40)
        np.testing.assert_allclose(np.array(reference.grid.spacing_mm), (6, 8, 8))
        np.testing.assert_allclose(
            np.array(case.grid.shape) * case.grid.spacing_mm,
            np.array(reference.grid.shape) * reference.grid.spacing_mm,
        )


def test_an_unprepared_case_is_named(fresh):
    with pytest.raises(UserError, match=r"train_\d_a_1 is not prepared; run the stage"):
        cache.open_prepared(fresh)


@pytest.mark.real_ct
def test_real_ct(real_ct, tmp_path, make_experiment, quiet):
    """All volumes at 128 x 128 with threshold masks; the patient lies as the canonical orientation says."""
    experiment = make_experiment(real_ct, tmp_path)
    data = experiment.data
    data.size, data.reconstructions = 128, "all"
    data.num_train_patients, data.num_val_patients, data.num_test_patients = 2, 1, 1
    prepared = cache.prepare(experiment, quiet)
    cases = {case.case_id: case for part in ("train", "val", "test") for case in prepared.cases(part)}
    assert cases.keys() == {
        "train_1_a_1", "train_1_a_2", "train_2_a_1", "train_3_a_1", "train_3_b_1", "valid_1_a_1",
    }  # fmt: skip
    assert [case.case_id for case in prepared.cases("test")] == ["valid_1_a_1"]
    for case in cases.values():
        reference = cache.reference_volume(experiment, case.case_id)
        assert case.image.shape == (reference.hu.shape[0], 128, 128)
        assert (case.image.min(), case.image.max() <= 1000) == (-1000, True)
        assert case.meta["percent"]["lung"] > 3
        assert case.image[case.labels == LUNG].mean() < -600
        lung = case.labels == LUNG
        slices = np.flatnonzero(lung.any(axis=(1, 2)))
        fifth = len(slices) // 5
        # The spine lies behind the lungs (H), and lungs reach lowest behind the dome of the diaphragm (D).
        assert np.nonzero(case.labels == BONE)[1].mean() > np.nonzero(lung)[1].mean()
        assert np.nonzero(lung[slices[:fifth]])[1].mean() > np.nonzero(lung[slices[-fifth:]])[1].mean()
        if case.case_id in ("train_1_a_1", "train_1_a_2", "train_2_a_1"):  # whole chests with two healthy lungs
            assert lung[:, :, :64].sum() > 1.1 * lung[:, :, 64:].sum()  # W runs to the left, where the heart lies
