import numpy as np
import pytest

from trace_lightning.anatomy import labels, totalsegmentator

# VISTA3D's ids that TotalSegmentator has nothing for: composites, tumours, vessels of the liver, the airway tree.
NOT_IN_TOTAL = {2, 20, 21, 23, 24, 25, 26, 27, 128, 132}
OTHERWISE_NAMED = {"urinary_bladder": "bladder"}


def test_every_class_of_the_task_is_there_once():
    names = totalsegmentator.names()
    assert list(names) == list(range(1, totalsegmentator.MAX_ID + 1)) == list(range(1, 118))
    assert len(set(names.values())) == 117


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (1, "spleen"), (2, "kidney_right"), (5, "liver"), (10, "lung_upper_lobe_left"), (14, "lung_lower_lobe_right"),
        (16, "trachea"), (22, "prostate"), (26, "vertebrae_S1"), (27, "vertebrae_L5"), (50, "vertebrae_C1"),
        (51, "heart"), (52, "aorta"), (61, "atrial_appendage_left"), (79, "spinal_cord"), (90, "brain"),
        (92, "rib_left_1"), (104, "rib_right_1"), (116, "sternum"), (117, "costal_cartilages"),
    ],
)  # fmt: skip
def test_ids_are_those_of_version_2(number, name):
    assert totalsegmentator.names()[number] == name


def test_each_class_has_a_structure_of_the_same_name():
    table, vista3d = totalsegmentator.vista3d_map(), labels.names()
    for number, name in totalsegmentator.names().items():
        ours = OTHERWISE_NAMED.get(name, name).replace("_", " ").lower().split()
        assert set(ours) == set(vista3d[int(table[number])].lower().split()), name


def test_the_table_is_one_to_one_onto_what_vista3d_can_be_asked_for():
    table = totalsegmentator.vista3d_map()
    assert (table.shape, table.dtype) == ((256,), np.uint8)
    assert sorted(table[1:118].tolist()) == sorted(set(labels.supported_ids()) - NOT_IN_TOTAL)
    assert totalsegmentator.unmapped() == ()
    assert not table[[0, *range(118, 256)]].any()


def test_the_coarse_classes_follow():
    table = totalsegmentator.vista3d_map()
    three = labels.granularity_map(3)[table]
    assert (three[10:15] == 1).all()
    assert (three[[1, 5, 51, 92, 117]] == 2).all()
    bone = {n for n, name in totalsegmentator.names().items() if int(table[n]) in labels.group_ids("bone")}
    assert {25, 26, 27, 50, 69, 78, 91, 92, 115, 116} <= bone
    assert not bone & {1, 10, 51, 52, 79, 90}
