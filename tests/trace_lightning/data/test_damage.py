"""Damage drawn at random on phantom and real volumes, from the file to HU: never a wrong scale without a word.

`TRACE_EXAMPLES=300` draws more than the suite does.
"""

import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trace_lightning.anatomy.grid import Grid
from trace_lightning.anatomy.state import REFUSALS, RESOLUTION_HU, Rescale
from trace_lightning.artifacts import Volume
from trace_lightning.config import PhantomConfig
from trace_lightning.data.acquisition import Acquisition
from trace_lightning.data.ct_rate import read_index, read_scan
from trace_lightning.data.examine import examine
from trace_lightning.data.phantom.scan import Scan
from trace_lightning.errors import UserError

EXAMPLES = int(os.environ.get("TRACE_EXAMPLES", "20"))
MINI = Path(os.environ.get("TRACE_DATA", "absent")) / "ct_rate_mini"
REAL = ["train_1_a_1", "train_1_a_2", "train_2_a_1", "train_3_a_1", "train_3_b_1", "valid_1_a_1"]
LARGEST = 80  # pixels and slices of what is damaged: every n-th of a real volume
AXES = ["LPS", "RAS", "LAI", "RPI", "PSL", "SLP", "IRP", "ASR"]  # right-handed: DICOM's table can say no others
LEFT_HANDED = ["LAS", "RPS", "LPI", "SPL"]


@cache
def volume_of(name: str) -> Volume:
    """Return a healthy volume in whole HU."""
    if name.startswith("phantom"):
        scan = Scan(PhantomConfig(size=48, spacing_z_mm=[8.0]), "train", int(name.removeprefix("phantom")))
        return Volume(scan.render()[0].astype(np.float32), scan.grid)
    volume = read_scan(next(scan for scan in read_index(MINI, "v2").scans if scan.case_id == name))
    every = [-(-n // LARGEST) for n in volume.hu.shape]
    hu = volume.hu[:: every[0], :: every[1], :: every[2]]
    return Volume(hu, Grid(hu.shape, volume.grid.affine @ np.diag([*every[::-1], 1.0])))


@dataclass(frozen=True)
class Damage:
    """What happens to a healthy volume on its way to a file, and to its row of the table.

    Attributes:
        applied: the intercept that the table names.
        offset: stored = HU - offset, where right would be 0 (v2) or `applied` (v1).
        slope: stored values are divided by it, where right would be 1.
        in_header: whether the file's header holds slope and offset, so that readers undo them.
        axes: of the stored array.
        honest: whether the header says so; else it says LPS.
        kind: dtype on disk.
        padding: value, in HU, outside a round field of view.
        not_finite: number of NaN voxels (floating kinds).
        version: of the folder.
        listed: whether the table names slope and intercept.
    """

    applied: float
    offset: float
    slope: float
    in_header: bool
    axes: str
    honest: bool
    kind: str
    padding: int | None
    not_finite: int
    version: str
    listed: bool

    @property
    def is_scaled_right(self) -> bool:
        """Whether what a reader of the file gets is what folder and table say."""
        right = 0.0 if self.version == "v2" else self.applied
        seen = (1.0, 0.0) if self.in_header else (self.slope, self.offset)
        return seen == (1.0, right)


offsets = st.one_of(
    st.sampled_from([0.0, -1024.0, 1024.0, -8192.0, 8192.0, -2048.0, -9216.0]),
    st.integers(-9000, 9000).map(float),
    st.integers(-250, 250).map(float),
)
damages = st.builds(
    Damage,
    applied=st.sampled_from([-1024.0, -8192.0, -1000.0]),
    offset=offsets,
    slope=st.sampled_from([1.0, 1.0, 1.0, 0.5, 2.0, 10.0]),
    in_header=st.booleans(),
    axes=st.sampled_from([*AXES, *LEFT_HANDED]),
    honest=st.booleans(),
    kind=st.sampled_from(["int16", "int32", "float32", "float64"]),
    padding=st.sampled_from([None, -1024, -2048, -3024]),
    not_finite=st.sampled_from([0, 0, 0, 3]),
    version=st.sampled_from(["v1", "v2"]),
    listed=st.booleans(),
).filter(lambda damage: damage.version == "v2" or damage.axes in AXES)


def write(path: Path, volume: Volume, damage: Damage) -> tuple[Acquisition, np.ndarray]:
    """Write the damaged file; return its row, and the HU with padding that were meant, canonical."""
    hu = volume.hu.copy()
    if damage.padding is not None:
        y, x = (np.abs(np.linspace(-1, 1, n)) for n in hu.shape[1:])
        hu[:, np.hypot(y[:, None], x) > 1.2] = damage.padding
    stored = (hu - damage.offset) / damage.slope
    if damage.kind.startswith("int"):
        limits = np.iinfo(damage.kind)
        stored = np.rint(stored).clip(limits.min, limits.max)
    elif damage.not_finite:
        stored.ravel()[:: stored.size // damage.not_finite] = np.nan
    affine = volume.grid.affine
    image = nib.Nifti1Image(np.transpose(stored, (2, 1, 0)).astype(damage.kind), affine)
    turned = image.as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(damage.axes)
        )
    )
    true_affine = turned.affine
    told = true_affine if damage.honest else affine
    # v1: the header is blank, and the table's geometry is the one that is honest or not.
    turned = nib.Nifti1Image(np.asarray(turned.dataobj), np.diag([1, 1, 1, 1.0]) if damage.version == "v1" else told)
    if damage.in_header:
        turned.header.set_slope_inter(damage.slope, damage.offset)
    nib.save(turned, path)
    return _row(told if damage.version == "v1" else affine, damage), hu


def _row(affine: np.ndarray, damage: Damage) -> Acquisition:
    """Return the row of a volume whose stored array has this RAS+ affine."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    w, h, d = np.linalg.norm(lps[:3, :3], axis=0)
    return Acquisition(
        rescale=Rescale(1.0, damage.applied) if damage.listed else None,
        spacing_mm=(d, h, w),
        position_mm=tuple(lps[:3, 3]),
        orientation=(*lps[:3, 0] / w, *lps[:3, 1] / h),
    )


def slope_and_offset(found: np.ndarray, meant: np.ndarray) -> tuple[float, float]:
    """Return the line that maps the meant HU of tissue and lung to those found, voxels sorted.

    Sorting makes it independent of how the array lies, and quantiles of what was clipped when it was stored.
    """
    share = np.linspace(0.05, 0.95, 61)
    tissue = [np.quantile(of[(meant > -1000) & (meant < 300)], share) for of in (meant, found)]
    return tuple(np.polyfit(*tissue, 1))


def check(volume: Volume, damage: Damage, repair: bool, path: Path) -> str:
    """Write, examine, and compare what was accepted with what was meant; return the reason."""
    acquisition, meant = write(path, volume, damage)
    decision, found = examine(path, damage.version, acquisition, repair)
    assert decision.reason in {"ok", "padding", *REFUSALS}
    if found is None:
        assert decision.state == "refused"
        return decision.reason
    hu = np.sort(found.hu, axis=None)
    slope, offset = slope_and_offset(hu, np.sort(meant, axis=None))
    assert abs(40 * slope + offset - 40) <= RESOLUTION_HU
    assert abs(slope - 1) <= 0.25
    if damage.is_scaled_right and not damage.not_finite and damage.listed and decision.reason in ("ok", "padding"):
        rounding = 0 if damage.slope == 1 else damage.slope / 2
        np.testing.assert_allclose(hu, np.sort(meant, axis=None), rtol=0, atol=rounding)
        if damage.honest:
            np.testing.assert_allclose(found.hu, meant, rtol=0, atol=rounding)
            assert found.grid.equals(volume.grid, tolerance_mm=1e-2)
    if not repair:
        assert decision.reason in ("ok", "padding")
    return decision.reason


phantoms = [f"phantom{number}" for number in (1, 2, 3)]
real_ct = [pytest.mark.real_ct, pytest.mark.skipif(not MINI.is_dir(), reason="TRACE_DATA holds no ct_rate_mini")]


@pytest.mark.parametrize("name", [*phantoms, *(pytest.param(name, marks=real_ct) for name in REAL)])
def test_damage_never_gives_a_wrong_scale_in_silence(name, tmp_path):
    volume = volume_of(name)

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(damage=damages, repair=st.booleans())
    def damaged(damage, repair):
        check(volume, damage, repair, tmp_path / "damaged.nii")

    damaged()


HEALTHY = Damage(-1024.0, 0.0, 1.0, False, "LPS", True, "int16", None, 0, "v2", True)


@pytest.mark.parametrize("name", [*phantoms, *(pytest.param(name, marks=real_ct) for name in REAL)])
def test_named_damage(name, tmp_path):
    """The cases that users of CT-RATE report, each by its name."""
    volume, path = volume_of(name), tmp_path / "damaged.nii"
    fine = "padding" if name.startswith("train_3") else "ok"
    cases = {
        HEALTHY: fine,
        replace(HEALTHY, listed=False): fine,
        replace(HEALTHY, offset=1024.0): "rescaled_twice",
        replace(HEALTHY, offset=8192.0, applied=-8192.0): "rescaled_twice",
        replace(HEALTHY, offset=-1024.0): "raw_in_v2",
        replace(HEALTHY, offset=-1024.0, version="v1"): "ok",
        replace(HEALTHY, offset=-8192.0, version="v1", applied=-8192.0): "ok",
        replace(HEALTHY, offset=-8192.0, version="v1"): "wrong_intercept",
        replace(HEALTHY, version="v1"): "hu_in_v1",
        replace(HEALTHY, offset=-8192.0, in_header=True): fine,
        replace(HEALTHY, slope=0.5, offset=-1024.0, in_header=True): fine,
        replace(HEALTHY, slope=2.0): "unexplained",
        replace(HEALTHY, kind="float32", not_finite=3): "not_finite",
        **{replace(HEALTHY, axes=axes): fine for axes in (*AXES, *LEFT_HANDED)},
        **{replace(HEALTHY, axes=axes, offset=-8192.0, applied=-8192.0, version="v1"): "ok" for axes in AXES},
    }
    assert {damage: check(volume, damage, False, path) for damage in cases} == cases
    mended = {
        replace(HEALTHY, offset=1024.0): "rescaled_twice",
        replace(HEALTHY, offset=-1024.0): "raw_in_v2",
        replace(HEALTHY, version="v1"): "hu_in_v1",
    }
    for damage, reason in mended.items():
        assert check(volume, damage, True, path) == reason
        acquisition, meant = write(path, volume, damage)
        np.testing.assert_array_equal(examine(path, damage.version, acquisition, repair=True).volume.hu, meant)


def test_a_truncated_file_is_no_volume(tmp_path):
    path = tmp_path / "cut.nii"
    acquisition, _ = write(path, volume_of("phantom1"), HEALTHY)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="may be truncated"):
        examine(path, "v2", acquisition)
