import copy
import pickle

import numpy as np
import pytest
import torch
import torch.multiprocessing as processes

from evaluation.frechet import frechet_distance, kernel_distance
from evaluation.streaming import FrechetDistance, KernelDistance

D = 24
FEATURES = {
    real: torch.from_numpy(np.random.default_rng(int(real)).normal(int(real) / 2, 1, (90, D))) for real in (True, False)
}


def fed(metric, part=slice(None), size=17):
    for real, features in FEATURES.items():
        for batch in features[part].split(size):
            metric.update(batch, real=real)
    return metric


@pytest.fixture(params=[FrechetDistance, KernelDistance])
def metric(request):
    return request.param(D)


def value(metric):
    found = metric.compute()
    return float(found if isinstance(found, torch.Tensor) else found[0])


def expected(metric):
    distance = frechet_distance if isinstance(metric, FrechetDistance) else kernel_distance
    return distance(FEATURES[False].numpy(), FEATURES[True].numpy()).value


def test_batches_of_any_size_equal_one_shot(metric):
    for size in (1, 7, 90):
        metric.reset()
        assert value(fed(metric, size=size)) == pytest.approx(expected(metric), rel=1e-10)


def test_offset_costs_no_digits():
    metric = FrechetDistance(D)
    for real in (True, False):
        for batch in (FEATURES[True] + 1e5).split(13):
            metric.update(batch, real=real)
    assert value(metric) < 1e-3


def test_merged_states_equal_one_metric(metric):
    other = copy.deepcopy(metric)
    fed(metric, slice(0, 31))
    fed(other, slice(31, None))
    metric.merge_state(other)
    assert value(metric) == pytest.approx(expected(metric), rel=1e-10)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_merging_with_an_empty_metric(metric):
    other = copy.deepcopy(metric)
    fed(metric)
    other.merge_state(metric)
    assert value(other) == pytest.approx(expected(metric), rel=1e-10)


def test_pickled_half_way(metric):
    fed(metric, slice(0, 40))
    again = fed(pickle.loads(pickle.dumps(metric)), slice(40, None))
    assert value(again) == pytest.approx(expected(metric), rel=1e-10)


def test_dtypes(metric):
    for real, features in FEATURES.items():
        metric.update(features.float(), real=real)
    assert value(metric) == pytest.approx(expected(metric), rel=1e-5)
    metric.set_dtype(torch.float32)
    assert value(metric) == pytest.approx(expected(metric), rel=1e-5)


def test_moments_stay_double():
    metric = fed(FrechetDistance(D)).set_dtype(torch.float16).half()
    assert metric.real.dtype == torch.float64


def test_reset_keeps_the_real_side_where_asked():
    metric = fed(FrechetDistance(D, reset_real_features=False))
    metric.reset()
    metric.update(FEATURES[False], real=False)
    assert value(metric) == pytest.approx(expected(metric), rel=1e-10)


def test_memory_does_not_grow():
    metric = fed(FrechetDistance(D))
    assert metric.real.shape == (D + 1, D + 1)


def test_too_little_and_wrong_shapes(metric):
    metric.update(FEATURES[True][:1], real=True)
    metric.update(FEATURES[True][:0], real=False)
    with pytest.raises(ValueError, match="two vectors"):
        metric.compute()
    with pytest.raises(ValueError, match="features are"):
        metric.update(torch.zeros(3, D + 1), real=True)


def _rank(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for metric in (FrechetDistance(D), KernelDistance(D)):
        found = value(fed(metric, slice(0, 23) if rank == 0 else slice(23, None)))
        assert found == pytest.approx(expected(metric), rel=1e-10)
        torch.save(found, f"{folder}/{type(metric).__name__}-{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    processes.spawn(_rank, (str(tmp_path),), nprocs=2)
    assert len(list(tmp_path.glob("*Distance-*"))) == 4
