import json
from pathlib import Path

import numpy as np
import pytest

from trace_lightning.anatomy import labels

TABLE = json.loads((Path(labels.__file__).parent / "vista3d_labels.json").read_text())
NOT_EVERYTHING = {2, 16, 18, 20, 21, 23, 24, 25, 26, 27, 128, 129, 130, 131, 132}


def test_names():
    names = labels.names()
    assert sorted(names) == list(range(133))
    assert (names[1], names[3], names[115], names[122]) == ("liver", "spleen", "heart", "sternum")


def test_what_vista3d_can_be_asked_for():
    supported = labels.supported_ids()
    assert len(supported) == 127
    assert list(supported) == sorted(supported)
    assert set(range(1, 133)) - set(supported) == {16, 18, 129, 130, 131}


def test_everything_leaves_out_composites_and_overlaps():
    composites, overlapping = {int(i) for i in TABLE["composite_ids"]}, set(TABLE["overlapping_ids"])
    everything = labels.everything_ids()
    assert set(everything) == set(range(1, 133)) - NOT_EVERYTHING
    assert list(everything) == sorted(everything)
    assert (len(everything), len(composites), len(overlapping)) == (117, 3, 7)


def test_composites():
    composites = {int(key): set(ids) for key, ids in TABLE["composite_ids"].items()}
    assert composites[2] == {5, 14}
    assert composites[labels.LUNG] == set(labels.LUNG_LOBES)
    assert len(composites[labels.BONE]) == 62
    assert 127 not in composites[labels.BONE]


def test_groups():
    lung, bone = set(labels.group_ids("lung")), set(labels.group_ids("bone"))
    assert lung == {20, 23, 28, 29, 30, 31, 32}
    assert set(TABLE["composite_ids"]["21"]) <= bone
    assert {21, 127} <= bone
    assert not lung & bone
    assert {57, 132} == set(labels.group_ids("airway"))
    with pytest.raises(KeyError, match="wings"):
        labels.group_ids("wings")


@pytest.mark.parametrize("classes", labels.GRANULARITIES)
def test_granularity_maps(classes):
    table = labels.granularity_map(classes)
    assert (table.shape, table.dtype) == ((256,), np.uint8)
    assert set(np.unique(table)) == set(range(classes))
    unsupported = sorted(set(range(256)) - set(labels.supported_ids()))
    assert not table[unsupported].any()


def test_128_classes_are_a_bijection():
    table = labels.granularity_map(128)
    supported = list(labels.supported_ids())
    assert table[supported].tolist() == list(range(1, 128))


def test_three_classes_keep_the_lungs_apart():
    table = labels.granularity_map(3)
    assert (table[[20, 23, 28, 32]] == 1).all()
    assert (table[[21, 57, 115, 132]] == 2).all()
    assert np.array_equal(table > 0, labels.granularity_map(2) > 0)


def test_other_granularities_are_refused():
    with pytest.raises(ValueError, match="num_mask_classes"):
        labels.granularity_map(5)
