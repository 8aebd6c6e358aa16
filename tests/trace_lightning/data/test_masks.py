from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from trace_lightning.anatomy.grid import Grid
from trace_lightning.anatomy.labels import BONE, LUNG
from trace_lightning.artifacts import Volume
from trace_lightning.config import DataConfig
from trace_lightning.data.ct_rate import Scan
from trace_lightning.data.masks import class_map, load_labels, read_mask
from trace_lightning.errors import UserError

LPS = np.diag([-8.0, -8.0, 6.0, 1.0])


@pytest.fixture
def volume(make_chest) -> Volume:
    return Volume(make_chest().astype(np.float32), Grid((12, 40, 40), LPS))


def test_threshold_finds_lungs_and_bone(volume, tmp_path):
    scan = Scan("train_1_a_1", "train_1", "train", tmp_path / "x.nii.gz", None, None, None)
    labels = load_labels(scan, volume, DataConfig(mask_source="threshold"), tmp_path)
    assert labels.shape == volume.hu.shape
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, LUNG, BONE}
    assert volume.hu[labels == LUNG].mean() < -700
    assert volume.hu[labels == BONE].mean() > 300


def test_only_the_phantom_has_exact_masks(volume, tmp_path):
    scan = Scan("train_1_a_1", "train_1", "train", tmp_path / "x.nii.gz", None, None, None)
    with pytest.raises(UserError, match=r"no exact mask of train_1_a_1; .*data\.mask_source=threshold"):
        load_labels(scan, volume, DataConfig(mask_source="phantom"), tmp_path)


def save(path, labels, affine=LPS):
    nib.save(nib.Nifti1Image(np.transpose(labels, (2, 1, 0)), affine), path)
    return path


def test_a_mask_of_another_shape_or_place_is_refused(volume, tmp_path):
    labels = np.zeros(volume.hu.shape, np.uint8)
    labels[3] = 28
    np.testing.assert_array_equal(read_mask(save(tmp_path / "good.nii.gz", labels), volume), labels)
    with pytest.raises(UserError, match=r"mask has shape \(11, 40, 40\) .*, its volume \(12, 40, 40\)"):
        read_mask(save(tmp_path / "short.nii.gz", labels[:11]), volume)
    moved = LPS.copy()
    moved[2, 3] = 3
    with pytest.raises(UserError, match="lies elsewhere than its volume"):
        read_mask(save(tmp_path / "moved.nii.gz", labels, moved), volume)
    other = replace(volume, grid=Grid((12, 40, 40), moved))
    np.testing.assert_array_equal(read_mask(tmp_path / "moved.nii.gz", other), labels)


def test_class_maps():
    labels = np.array([[0, 28, 20, 21, 132]], np.uint8)
    assert class_map(labels, 2).tolist() == [[0, 1, 1, 1, 1]]
    assert class_map(labels, 3).tolist() == [[0, 1, 1, 2, 2]]
    fine = class_map(labels, 128)
    assert fine[0, 0] == 0
    assert len(set(fine[0].tolist())) == 5
    assert fine.max() == 127
