import json

import numpy as np
import pytest
from scipy.spatial import cKDTree

from evaluation.memorisation import memorisation, nearest


def rows(*values):
    return np.array(values, np.float32)[:, None]


def test_by_hand():
    training = {"t1": rows(0, 10), "t2": rows(100, 110)}
    heldout = {"h1": rows(13, 14), "h2": rows(120, 130)}
    generated = {"g1": rows(0, 10), "g2": rows(111, 60)}
    found = memorisation(generated, training, heldout)
    # slices: held-out at 3, 4, 10, 20; generated at 0, 0, 1, 40
    assert found.slices.threshold == pytest.approx(np.percentile([3, 4, 10, 20], 5))
    assert found.slices.share_nearer == pytest.approx(3 / 4)
    assert found.slices.copies == 2
    assert found.slices.median_generated == pytest.approx(0.5)
    assert found.slices.median_heldout == pytest.approx(7)
    assert (found.slices.n_generated, found.slices.n_heldout, found.slices.n_training) == (4, 4, 4)
    # volumes: means 5 and 105 of the training set, 13.5 and 125 held out, 5 and 85.5 generated
    assert found.volumes.threshold == pytest.approx(np.percentile([8.5, 20], 5))
    assert found.volumes.copies == 1
    assert found.volumes.share_nearer == pytest.approx(1 / 2)
    # held-out volumes lie at 8.5 and 20; slice 0 of g2 (111) is nearest to slice 1 of t2 (110); held-out slices' 5 %
    # is at 3.15
    assert found.nearest == {
        "g1": ("t1", 0.0, 0.0, 0, "t1", 0, 0.0, 1.0),
        "g2": ("t2", pytest.approx(19.5), 50.0, 0, "t2", 1, pytest.approx(1.0), 0.5),
    }
    json.dumps(found.to_json())


def sets(seed, count=20, slices=10, d=16):
    rng = np.random.default_rng(seed)
    return {
        f"{seed}_{i}": rng.normal(size=(1, d)) + rng.normal(size=(slices, d)).astype(np.float32) for i in range(count)
    }


def test_a_copied_volume_is_found():
    training, heldout, generated = sets(1), sets(2), sets(3)
    generated["copy"] = training["1_7"].copy()
    found = memorisation(generated, training, heldout)
    assert found.nearest["copy"] == ("1_7", 0.0, 0.0, 0, "1_7", 0, 0.0, 1.0)
    assert found.volumes.copies == 1
    assert found.slices.copies == 10


def test_fresh_samples_are_near_as_often_as_held_out_ones():
    found = memorisation(sets(3, 100), sets(1, 100), sets(2, 100))
    assert found.slices.share_nearer == pytest.approx(0.05, abs=0.03)
    assert found.slices.low <= 0.05 <= found.slices.high
    near = {case: features + 0.05 for case, features in sets(1, 100).items()}
    assert memorisation(near, sets(1, 100), sets(2, 100)).slices.share_nearer > 0.9


@pytest.mark.parametrize("block_bytes", [8, 8 * 50, 1 << 20])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_nearest_against_a_tree(block_bytes, offset):
    rng = np.random.default_rng(0)
    bank, queries = (rng.normal(size=(n, 6)) + offset for n in (80, 30))
    queries[4] = bank[50]
    found = nearest(queries, bank, block_bytes)
    distance, index = cKDTree(bank).query(queries)
    assert np.array_equal(found.index, index)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-9)
    assert found.distance[4] == 0


def test_refused():
    with pytest.raises(ValueError, match="needs"):
        memorisation(sets(1), sets(2), {})
    with pytest.raises(ValueError, match="held out at once: 2_0"):
        memorisation(sets(1), sets(2), sets(2))
