import numpy as np
import pytest
from PIL import Image
from toy_chest import SPACING_MM, chest

from evaluation.__main__ import main
from evaluation.inputs import Frames, input_digest, matched, read_any, read_prompts, volumes_in
from evaluation.score import score
from trace_lightning.artifacts import Volume, read_json, read_stored, read_volume, write_volume
from trace_lightning.errors import UserError

WINDOW = (-1000.0, 1000.0)


def write_frames(folder, hu, bits=8):
    """Write slices as grey frames of a window, numbered without leading zeros."""
    folder.mkdir(parents=True)
    most = 2**bits - 1
    levels = np.rint((np.clip(hu, *WINDOW) - WINDOW[0]) / (WINDOW[1] - WINDOW[0]) * most)
    for index, plane in enumerate(levels.astype(np.uint8 if bits == 8 else np.uint16)):
        Image.fromarray(plane).save(folder / f"{index}.png")


@pytest.mark.parametrize("bits", [8, 16])
def test_frames_are_read_in_order_of_their_numbers(tmp_path, bits):
    volume, _ = chest(0)
    write_frames(tmp_path / "case", volume.hu, bits)
    found = read_any(tmp_path / "case", Frames(SPACING_MM, WINDOW))
    assert np.abs(found.hu - np.clip(volume.hu, *WINDOW)).max() <= 1000 / (2**bits - 1) + 1e-3
    assert found.grid.spacing_mm == pytest.approx(SPACING_MM)


def test_frames_without_spacing_or_window_are_refused(tmp_path):
    write_frames(tmp_path / "real" / "case_0", chest(0)[0].hu)
    with pytest.raises(UserError, match="--frame-spacing-mm"):
        score(tmp_path / "real", tmp_path / "real", tmp_path / "o")
    for wrong in (((0, 1, 1), WINDOW), ((1, 1), WINDOW), (SPACING_MM, (5, -5))):
        with pytest.raises(UserError, match="frames"):
            Frames(*wrong)


def test_frames_against_a_volume_elsewhere_are_centred_on_it(tmp_path):
    volume, _ = chest(1)
    affine = volume.grid.affine.copy()
    affine[:3, 3] += (300, -200, 900)
    write_volume(tmp_path / "real" / "case_0.nii.gz", Volume(volume.hu, type(volume.grid)(volume.grid.shape, affine)))
    write_frames(tmp_path / "made" / "case_0", volume.hu)
    options = ["--frame-spacing-mm", *map(str, SPACING_MM), "--frame-window-hu", "-1000", "1000"]
    folders = [str(tmp_path / name) for name in ("made", "real")]
    assert main(["score", *folders, "--out", str(tmp_path / "o"), *options]) == 0
    found = read_json(tmp_path / "o" / "summary.json")["metrics"]
    assert found["dice"]["value"] > 0.99
    assert found["border_difference_ratio"]["value"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("offset", [1024, -1024])
@pytest.mark.parametrize("side", ["made", "real"])
def test_values_that_are_evidently_no_hu_are_refused(tmp_path, side, offset):
    for index in range(2):
        volume, _ = chest(index)
        for folder in ("made", "real"):
            hu = volume.hu + offset if (folder, index) == (side, 0) else volume.hu
            write_volume(tmp_path / folder / f"case_{index}.nii.gz", Volume(hu, volume.grid))
    folders = [str(tmp_path / name) for name in ("made", "real")]
    assert main(["score", *folders, "--out", str(tmp_path / "o"), "--metrics", "dice"]) == 1
    found = read_json(tmp_path / "o" / "summary.json")
    assert found["cases"] == ["case_1"] and list(found["failed"]) == ["case_0"]
    said = f"{side}/case_0.nii.gz: its values are no HU, 1 x stored {-offset:+d} would be"
    assert said in found["failed"]["case_0"]


def test_what_is_no_grey_frame(tmp_path):
    folder = tmp_path / "case"
    folder.mkdir()
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[..., 0] = 9
    for pixels, says in ((colour, "grey"), (None, "cannot be read")):
        (folder / "0.png").write_bytes(b"no image")
        if pixels is not None:
            Image.fromarray(pixels).save(folder / "0.png")
        with pytest.raises(UserError, match=says):
            read_any(folder, Frames(SPACING_MM, WINDOW))
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "0.png")
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(folder / "1.png")
    with pytest.raises(UserError, match="another size"):
        read_any(folder, Frames(SPACING_MM, WINDOW))


def test_metaimage_is_the_same_volume(tmp_path):
    import SimpleITK as sitk

    volume, _ = chest(2)
    write_volume(tmp_path / "real" / "case_0.nii.gz", volume)
    (tmp_path / "made").mkdir()
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "real" / "case_0.nii.gz")), str(tmp_path / "made" / "case_0.mha"))
    nifti, meta = read_volume(tmp_path / "real" / "case_0.nii.gz"), read_volume(tmp_path / "made" / "case_0.mha")
    assert np.array_equal(nifti.hu, meta.hu)
    assert meta.grid.equals(nifti.grid)
    found = score(tmp_path / "made", tmp_path / "real", tmp_path / "o")
    assert found["metrics"]["dice"]["value"] == 1
    (tmp_path / "made" / "case_0.mha").write_text("ObjectType = Nonsense")
    with pytest.raises(UserError, match=r"case_0\.mha: cannot be read as MetaImage"):
        read_stored(tmp_path / "made" / "case_0.mha")


def test_metaimage_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    (tmp_path / "a.mha").write_text("")
    with pytest.raises(UserError, match=r"trace-lightning\[itk\]"):
        read_volume(tmp_path / "a.mha")


def test_matching_by_name(tmp_path):
    for name in ("a.nii.gz", "b.nii", "c.mha"):
        (tmp_path / name).write_text("")
    write_frames(tmp_path / "d", np.zeros((2, 4, 4)))
    (tmp_path / "empty").mkdir()
    assert list(volumes_in(tmp_path)) == ["a", "b", "c", "d"]
    found = matched({"a": tmp_path, "b": tmp_path}, {"b": tmp_path, "c": tmp_path})
    assert (found.both, found.missing, found.unmatched) == (("b",), ("c",), ("a",))


def test_the_digest_of_frames_sees_names_and_pixels(tmp_path):
    write_frames(tmp_path / "d", np.zeros((3, 4, 4)))
    first = input_digest(tmp_path / "d")
    (tmp_path / "d" / "2.png").rename(tmp_path / "d" / "3.png")
    assert input_digest(tmp_path / "d") != first


def test_prompts(tmp_path):
    (tmp_path / "p.csv").write_text('case_id,prompt\ncase_0.nii.gz,"a chest, with\ncare"\ncase_1,\n')
    assert read_prompts(tmp_path / "p.csv") == {"case_0": "a chest, with\ncare", "case_1": ""}
    (tmp_path / "q.csv").write_text("case,text\n1,2\n")
    with pytest.raises(UserError, match="case_id and prompt"):
        read_prompts(tmp_path / "q.csv")
    with pytest.raises(UserError, match="no such file"):
        read_prompts(tmp_path / "r.csv")
