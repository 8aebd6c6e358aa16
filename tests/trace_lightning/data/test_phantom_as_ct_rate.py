"""The phantom goes the way of real data: tables, split, masks, flow, cache, loader."""

import cv2
import numpy as np
import pytest

from trace_lightning.anatomy.labels import group_ids
from trace_lightning.config import Experiment
from trace_lightning.data import cache
from trace_lightning.data.datamodule import CTRateDataModule


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Experiment:
    experiment = Experiment(name="phantom")
    data = experiment.data
    data.phantom.num_train_patients, data.phantom.num_valid_patients, data.phantom.size = 4, 1, 64
    data.phantom.spacing_z_mm = [6.0, 8.0]
    data.num_train_patients, data.num_val_patients, data.num_test_patients = 3, 1, 1
    data.size, data.flow_source, data.flow_stride, data.num_workers = 64, "phantom", 2, 0
    experiment.train.max_steps, experiment.run.device = 3, "cpu"
    experiment.run.cache_dir = str(tmp_path_factory.mktemp("cache"))
    return experiment


@pytest.fixture(scope="module")
def prepared(experiment) -> cache.Prepared:
    return cache.prepare(experiment, lambda done, total, note="": None)


def test_masks_fit_their_images(prepared):
    for case in (*prepared.cases("train"), *prepared.cases("val"), *prepared.cases("test")):
        assert len(np.unique(case.labels)) > 20
        lung, bone = (np.isin(case.labels, group_ids(group)) for group in ("lung", "bone"))
        assert case.image[lung].mean() < -500
        assert case.image[bone].mean() > 150
        assert case.prompt
        assert 30 <= case.image.shape[0] <= 56


def test_the_exact_flow_leads_from_a_slice_to_the_next(prepared):
    """Warping slice j back by the flow lowers its difference to slice i; warping it the other way raises it."""
    y, x = np.mgrid[:64, :64].astype(np.float32)
    difference = {"none": 0.0, "flow": 0.0, "reversed": 0.0}
    for case in prepared.cases("train"):
        for i in range(0, case.image.shape[0] - 4, 4):
            first, second = (case.image[n].astype(np.float32) for n in (i, i + 4))
            shares = case.flow(i, i + 4).astype(np.float32)
            pixels = np.stack([cv2.resize(share, (64, 64)) for share in shares]) * 64
            for name, sign in (("none", 0), ("flow", 1), ("reversed", -1)):
                warped = cv2.remap(second, x + sign * pixels[0], y + sign * pixels[1], cv2.INTER_LINEAR)
                difference[name] += np.abs(warped - first)[4:-4, 4:-4].mean()
    assert difference["flow"] < difference["none"] < difference["reversed"]


def test_the_second_prepare_writes_nothing(experiment, prepared):
    files = {path: path.stat().st_mtime_ns for path in cache.data_root(experiment).rglob("*") if path.name != ".lock"}
    again = cache.prepare(experiment, lambda done, total, note="": pytest.fail("nothing was left to do"))
    assert again == prepared
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in files.items() if path.is_file())


def test_the_loader_and_the_test_cases(experiment, prepared):
    module = CTRateDataModule(experiment)
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert batch["flow"].shape == (experiment.train.batch_size, 2, 32, 32)
    (case,) = cache.test_cases(experiment)
    assert case.case_id == "valid_1_a_1"
    assert cache.reference_volume(experiment, case.case_id).grid.equals(case.grid)
