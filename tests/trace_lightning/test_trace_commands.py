"""`python -m trace_lightning`: the commands of a single user."""

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from omegaconf import OmegaConf

from trace_lightning.__main__ import main
from trace_lightning.artifacts import read_json, write_json
from trace_lightning.data import cache
from trace_lightning.errors import UserError
from trace_lightning.text_effect import text_effect

PROMPT = "54 years old male: Nodule."


@pytest.fixture(scope="session")
def run_folder(prepared, trained, tmp_path_factory):
    """A run as the pipeline leaves it."""
    folder = tmp_path_factory.mktemp("runs") / "tiny" / "ours" / "seed0"
    (folder / "train").mkdir(parents=True)
    OmegaConf.save(OmegaConf.structured(prepared), folder / "config.yaml")
    write_json(folder / "train" / "training.json", {"folder": str(trained), "digest": trained.name})
    return folder


def mask_file(path, axes: str, shape=(40, 36, 9)):
    """A mask with two lungs and a spine, stored in any axis order."""
    labels = np.zeros(shape, np.uint8)
    labels[8:16, 10:26] = 28
    labels[24:32, 10:26] = 32
    labels[18:22, 27:31] = 42
    image = nib.Nifti1Image(labels, np.diag([-8.0, -8.0, 6.0, 1.0]))
    change = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(axes))
    )
    nib.save(image.as_reoriented(change), path)
    return path


def generate(run_folder, mask, out, *more):
    return main(
        ["generate", "--run", str(run_folder), "--mask", str(mask), "--prompt", PROMPT, "--out", str(out), *more]
    )


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SPL", "AIR"])
def test_generate_returns_hu_on_the_masks_own_geometry(run_folder, tmp_path, axes):
    mask = mask_file(tmp_path / "mask.nii.gz", axes)
    assert generate(run_folder, mask, tmp_path / "ct.nii.gz") == 0
    made, given = nib.load(tmp_path / "ct.nii.gz"), nib.load(mask)
    assert made.shape == given.shape
    assert np.array_equal(made.affine, given.affine)
    assert made.get_data_dtype() == np.int16
    assert -1000 <= np.asarray(made.dataobj).min() <= np.asarray(made.dataobj).max() <= 1000
    record = read_json(tmp_path / "ct.json")
    assert record["prompt"] == PROMPT
    assert record["model_grid"]["shape"] == [9, 32, 32]


def test_the_axis_order_of_the_mask_does_not_change_the_volume(run_folder, tmp_path):
    for axes in ("LPS", "RAI"):
        generate(run_folder, mask_file(tmp_path / f"{axes}.nii.gz", axes), tmp_path / f"ct_{axes}.nii.gz")
    canonical = nib.load(tmp_path / "ct_LPS.nii.gz")
    other = nib.load(tmp_path / "ct_RAI.nii.gz")
    change = nib.orientations.ornt_transform(
        nib.io_orientation(other.affine), nib.orientations.axcodes2ornt(("L", "P", "S"))
    )
    assert np.array_equal(np.asarray(canonical.dataobj), np.asarray(other.as_reoriented(change).dataobj))


def test_generate_makes_as_many_slices_as_asked_on_the_same_geometry(run_folder, tmp_path):
    mask = mask_file(tmp_path / "mask.nii.gz", "LPS")
    generate(run_folder, mask, tmp_path / "ct.nii.gz", "--slices", "5")
    assert nib.load(tmp_path / "ct.nii.gz").shape == (40, 36, 9)
    assert read_json(tmp_path / "ct.json")["model_grid"]["shape"] == [5, 32, 32]


def test_generate_refuses_what_it_cannot_use(run_folder, tmp_path):
    mask = mask_file(tmp_path / "mask.nii.gz", "LPS")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "empty.nii.gz")
    with pytest.raises(UserError, match="some structure"):
        generate(run_folder, tmp_path / "empty.nii.gz", tmp_path / "ct.nii.gz")
    with pytest.raises(UserError, match="no such file"):
        generate(tmp_path, mask, tmp_path / "ct.nii.gz")
    with pytest.raises(UserError, match=r"\.nii"):
        generate(run_folder, mask, tmp_path / "ct.png")
    before = mask.read_bytes()
    with pytest.raises(UserError, match="is the mask itself"):
        generate(run_folder, mask, tmp_path / "." / mask.name)
    assert mask.read_bytes() == before
    assert not (tmp_path / "ct.nii.gz").exists()


def test_the_same_prompt_twice_changes_nothing_and_another_prompt_something(prepared, trained, tmp_path):
    from trace_lightning.artifacts import write_labels

    case = cache.test_cases(prepared)[0]
    write_labels(tmp_path / f"{case.case_id}.nii.gz", case.labels, case.grid)

    def effect(other: str):
        (found,) = text_effect(prepared, trained, tmp_path, PROMPT, other, 20, 0, lambda done, total, note="": None)
        return found

    assert effect(PROMPT).absolute_hu == 0
    assert effect("30 years old female: Effusion.").absolute_hu > 0
    with pytest.raises(UserError, match="liver"):
        text_effect(prepared, trained, tmp_path, PROMPT, "", 1, 0, lambda done, total, note="": None)


def test_help_is_quick_and_bad_input_is_one_line_with_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "trace_lightning"]
    imports = "import sys, trace_lightning.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", imports], check=False).returncode == 0
    bad = subprocess.run(
        [*command, "phantom", str(tmp_path / "x"), "--patients", "0"], capture_output=True, text=True, check=False
    )
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: --patients")
    assert "Traceback" not in bad.stderr
    assert not (tmp_path / "x").exists()
