from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from trace_lightning.anatomy import labels as vista3d
from trace_lightning.anatomy.grid import Grid
from trace_lightning.anatomy.labels import BONE, LUNG
from trace_lightning.anatomy.vista3d import Vista3D
from trace_lightning.artifacts import Volume, read_volume
from trace_lightning.config import DataConfig
from trace_lightning.data import cache
from trace_lightning.data.ct_rate import Scan, volume_path
from trace_lightning.data.masks import class_map, identity, load_labels, read_mask, weights_stamp
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


@pytest.fixture
def total(volume, tmp_path):
    """A scan with a TotalSegmentator mask where CT-RATE has it: liver, a rib, a lobe."""
    labels = np.zeros(volume.hu.shape, np.uint8)
    labels[0], labels[1], labels[2] = 5, 104, 12
    folder = tmp_path / "dataset" / "ts_seg" / "ts_total" / "train_fixed" / "train_1741" / "train_1741_b"
    folder.mkdir(parents=True)
    path = tmp_path / "dataset" / "train_fixed" / "train_1741" / "train_1741_b" / "train_1741_b_2.nii.gz"
    scan = Scan("train_1741_b_2", "train_1741", "train", path, None, None, None)
    return scan, save(folder / "train_1741_b_2.nii.gz", labels), labels


def test_total_segmentators_masks_become_vista3d_ids(total, volume, tmp_path):
    scan, _, _ = total
    labels = load_labels(scan, volume, DataConfig(mask_source="ts_total"), tmp_path)
    assert [set(np.unique(labels[n])) for n in range(4)] == [{1}, {75}, {30}, {0}]
    assert labels.dtype == np.uint8
    assert class_map(labels[:3, 0, 0], 3).tolist() == [2, 2, 1]


def test_a_missing_or_foreign_total_segmentator_mask_is_named(total, volume, tmp_path):
    scan, path, labels = total
    data = DataConfig(mask_source="ts_total")
    save(path, np.where(labels == 5, 130, labels).astype(np.uint8))
    with pytest.raises(UserError, match=f"{path}: holds class 130; .* up to 117"):
        load_labels(scan, volume, data, tmp_path)
    save(path, labels[:5])
    with pytest.raises(UserError, match=r"mask has shape \(5, 40, 40\)"):
        load_labels(scan, volume, data, tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=f"{path}: no TotalSegmentator mask of train_1741_b_2; .*mask_source=threshold"):
        load_labels(scan, volume, data, tmp_path)


def test_masks_are_prepared_again_when_they_change(tree, make_experiment, make_chest, quiet, tmp_path):
    for name in ("train_1_a_1", "valid_1_a_1"):
        tree.add(name, make_chest())
    experiment = make_experiment(tree.write_tables().root, tmp_path / "cache")
    experiment.data.mask_source = "ts_total"
    experiment.data.num_train_patients, experiment.data.num_val_patients, experiment.data.num_test_patients = 1, 0, 1
    paths = {}
    for name in ("train_1_a_1", "valid_1_a_1"):
        dataset = tree.root / "dataset"
        paths[name] = dataset / "ts_seg" / "ts_total" / tree.path(name).relative_to(dataset)
        paths[name].parent.mkdir(parents=True)
        save(paths[name], np.full((12, 40, 40), 5, np.uint8))
    folder = cache.prepare(experiment, quiet).folder
    assert set(np.unique(np.load(folder / "train_1_a_1" / "labels.npy"))) == {1}
    assert cache.is_prepared(experiment)
    save(paths["train_1_a_1"], np.full((12, 40, 40), 1, np.uint8))
    assert not cache.is_prepared(experiment)
    cache.prepare(experiment, quiet)
    assert set(np.unique(np.load(folder / "train_1_a_1" / "labels.npy"))) == {3}
    paths["train_1_a_1"].unlink()
    with pytest.raises(UserError, match="no TotalSegmentator mask of train_1_a_1"):
        cache.prepare(experiment, quiet)


NEAR = np.diag([-2.0, -2.0, 3.0, 1.0])  # small enough for one window of VISTA3D


@pytest.fixture(scope="module")
def vista3d_weights(tmp_path_factory) -> Path:
    """Random weights of a narrow VISTA3D in the real format."""
    import torch
    from monai.networks.nets import vista3d132

    path = tmp_path_factory.mktemp("weights") / "small.pt"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(vista3d132(encoder_embed_dim=8).state_dict(), path)
    return path


@pytest.fixture
def small_windows(monkeypatch):
    """Windows of 64 voxels, an eighth of the work."""
    monkeypatch.setattr(Vista3D, "load", partial(Vista3D.load, window=64))


def test_vista3d_segments_a_scan_window_by_window(make_chest, tmp_path, vista3d_weights, small_windows):
    volume = Volume(make_chest().astype(np.float32), Grid((12, 40, 40), NEAR))
    scan = Scan("train_1_a_1", "train_1", "train", tmp_path / "x.nii.gz", None, None, None)
    notes = []
    data = DataConfig(mask_source="vista3d", vista3d_weights=str(vista3d_weights))
    labels = load_labels(scan, volume, data, tmp_path, "cpu", notes.append)
    assert (labels.shape, labels.dtype) == (volume.hu.shape, np.uint8)
    assert notes == ["train_1_a_1: window 1 of 1 of VISTA3D"]
    assert set(np.unique(labels)) <= {0, *vista3d.everything_ids()}
    assert len(np.unique(class_map(labels, 128))) == len(np.unique(labels)) > 5


def test_vista3d_without_weights_names_the_key(make_chest, volume, tmp_path):
    scan = Scan("train_1_a_1", "train_1", "train", tmp_path / "x.nii.gz", None, None, None)
    data = DataConfig(mask_source="vista3d", vista3d_weights=str(tmp_path / "absent.pt"))
    with pytest.raises(UserError, match=r"data\.vista3d_weights=.*absent\.pt: .*no such file\. Download https://"):
        load_labels(scan, volume, data, tmp_path)
    assert weights_stamp(data) is None


def test_other_weights_are_other_masks(vista3d_weights, tmp_path):
    def data_of(path: object, source: str = "vista3d") -> DataConfig:
        return DataConfig(mask_source=source, vista3d_weights=str(path))

    (tmp_path / "moved.pt").write_bytes(vista3d_weights.read_bytes())
    (tmp_path / "other.pt").write_bytes(vista3d_weights.read_bytes() + b"1")
    here = identity(data_of(vista3d_weights))
    assert here == identity(data_of(tmp_path / "moved.pt"))
    assert here != identity(data_of(tmp_path / "other.pt"))
    assert identity(data_of("hub")) == ["vista3d", "nvidia/NV-Segment-CT/vista3d_pretrained_model/model.pt"]
    assert identity(data_of(vista3d_weights, "threshold")) == identity(data_of("hub", "threshold"))
    (tmp_path / "moved.pt").write_bytes(b"replaced")
    assert identity(data_of(tmp_path / "moved.pt")) != here


def test_prepared_volumes_hold_the_masks_of_vista3d(
    tree, make_experiment, make_chest, tmp_path, vista3d_weights, small_windows
):
    for name in ("train_1_a_1", "valid_1_a_1"):
        tree.add(name, make_chest())
        tree.write_volume(name, make_chest(), NEAR)
    experiment = make_experiment(tree.write_tables().root, tmp_path / "cache")
    experiment.data.mask_source, experiment.data.vista3d_weights = "vista3d", str(vista3d_weights)
    experiment.data.num_train_patients, experiment.data.num_val_patients, experiment.data.num_test_patients = 1, 0, 1
    told = []
    prepared = cache.prepare(experiment, lambda done, total, note="": told.append((done, total, note)))
    assert (0, 2, "train_1_a_1: window 1 of 1 of VISTA3D") in told
    assert (1, 2, "valid_1_a_1: window 1 of 1 of VISTA3D") in told
    case = prepared.cases("test")[0]
    assert len(np.unique(case.labels)) > 5
    assert cache.is_prepared(experiment)
    experiment.data.vista3d_weights = str(tmp_path / "absent.pt")
    assert not cache.is_prepared(experiment)


@pytest.mark.real_ct
@pytest.mark.slow
def test_vista3d_takes_a_real_scan(real_ct, vista3d_weights):
    """Untrained, so that only the way there and back is tried: air is background, labels vary, the grid is kept."""
    volume = read_volume(volume_path(real_ct, "train_2_a_1"))
    scan = Scan("train_2_a_1", "train_2", "train", volume_path(real_ct, "train_2_a_1"), None, None, None)
    data = DataConfig(mask_source="vista3d", vista3d_weights=str(vista3d_weights))
    notes = []
    labels = load_labels(scan, volume, data, real_ct, "cpu", notes.append)
    assert labels.shape == volume.hu.shape
    assert len(notes) >= 8
    assert len(np.unique(labels)) > 10


@pytest.mark.real_ct
def test_real_total_segmentator_labels_lie_on_their_organs(real_ct):
    """An abdomen: liver to the right, spleen to the left and behind, kidneys behind, L5 below T12, bone dense."""
    volume = read_volume(volume_path(real_ct, "train_4_a_1"))
    scan = Scan("train_4_a_1", "train_4", "train", volume_path(real_ct, "train_4_a_1"), None, None, None)
    found = load_labels(scan, volume, DataConfig(mask_source="ts_total"), real_ct)
    ids = {name: number for number, name in vista3d.names().items()}
    centre = {
        name: np.argwhere(found == number).mean(axis=0) for name, number in ids.items() if (found == number).any()
    }
    hu = {name: np.median(volume.hu[found == ids[name]]) for name in centre}
    assert centre["liver"][2] < centre["stomach"][2] < centre["spleen"][2]  # W runs to the patient's left
    assert centre["right kidney"][2] < centre["aorta"][2] < centre["left kidney"][2]
    assert centre["liver"][1] < centre["right kidney"][1]  # H runs to the back
    assert centre["bladder"][0] < centre["vertebrae L5"][0] < centre["vertebrae T12"][0] < centre["vertebrae T11"][0]
    assert centre["right hip"][2] < centre["sacrum"][2] < centre["left hip"][2]
    assert centre["left rib 9"][2] > 60 > centre["right rib 9"][2]
    assert all(0 < hu[name] < 80 for name in ("liver", "spleen", "right kidney", "aorta", "left iliopsoas"))
    assert all(hu[name] < -700 for name in centre if "lung" in name)
    assert all(hu[name] > 80 for name in centre if ids[name] in vista3d.group_ids("bone"))
