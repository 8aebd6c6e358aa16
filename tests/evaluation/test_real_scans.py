import os
from pathlib import Path

import numpy as np
import pytest

from evaluation.score import score
from trace_lightning.anatomy.grid import resample
from trace_lightning.anatomy.threshold import segment
from trace_lightning.artifacts import Volume, read_volume, write_labels, write_volume

DATA = Path(os.environ.get("TRACE_DATA", "absent")) / "ct_rate_mini" / "dataset"
pytestmark = [pytest.mark.real_ct, pytest.mark.skipif(not DATA.is_dir(), reason="TRACE_DATA holds no ct_rate_mini")]


def test_a_real_scan_halved_in_plane_reaches_its_own_ceiling(tmp_path):
    """Real CT at half resolution stands in for a perfect generator."""
    for name in ("train_2_a_1", "valid_1_a_1"):
        scan = read_volume(next(path for path in DATA.rglob(f"{name}.nii.gz") if "_fixed" in str(path)))
        depth, height, width = scan.hu.shape
        coarse = scan.grid.resized((depth, height // 2, width // 2))
        made = np.clip(resample(scan.hu, scan.grid, coarse, 1, -1024.0), -1000, 1000)
        write_volume(tmp_path / "real" / f"{name}.nii.gz", scan)
        write_volume(tmp_path / "made" / f"{name}.nii.gz", Volume(made, coarse))
        labels = resample(segment(scan.hu, scan.grid.spacing_mm), scan.grid, coarse, 0, 0)
        write_labels(tmp_path / "masks" / f"{name}.nii.gz", labels, coarse)
    found = score(tmp_path / "made", tmp_path / "real", tmp_path / "scores", tmp_path / "masks")["metrics"]
    assert found["dice_lung"]["value"] > 0.9
    assert found["skill_lung"]["value"] == pytest.approx(1, abs=0.01)
    assert found["ceiling_lung"]["value"] - found["chance_lung"]["value"] > 0.25
    assert found["hd95_mm_lung"]["value"] < 15
