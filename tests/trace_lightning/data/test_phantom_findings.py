"""Each finding is visible in the image, present in the mask where VISTA3D has a class, and said in the report."""

from dataclasses import replace

import numpy as np
import pytest

from trace_lightning.anatomy.labels import LUNG_LOBES, LUNG_TUMOR
from trace_lightning.config import PhantomConfig
from trace_lightning.data.phantom.anatomy import Anatomy
from trace_lightning.data.phantom.findings import KINDS, LABELS, MOST
from trace_lightning.data.phantom.findings.in_lungs import Consolidation, Emphysema, Nodule, PleuralEffusion
from trace_lightning.data.phantom.findings.in_mediastinum import AorticDilatation, Cardiomegaly, HiatalHernia
from trace_lightning.data.phantom.render import render
from trace_lightning.data.phantom.reports import NOT_GIVEN, label_row, write_report
from trace_lightning.data.phantom.scan import Scan

SCAN = Scan(PhantomConfig(size=64, spacing_z_mm=[7.0]), "train", 4)
WHERE = (0.3, 0.7, 0.4)


@pytest.fixture(scope="module")
def volume():
    """Return a function that renders one patient with some findings: (hu float, labels)."""
    known = {}

    def of(*findings):
        if findings not in known:
            anatomy = Anatomy(SCAN.patient, findings, SCAN.stream("placement"))
            hu, labels = render(anatomy, SCAN.grid, "B", (0, 0, 4, 5))
            known[findings] = hu.astype(np.float32), labels
        return known[findings]

    return of


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_finding_changes_the_image(kind, volume):
    finding = kind(0.7, WHERE)
    difference = np.abs(volume(finding)[0] - volume()[0])
    assert (difference > 60).sum() >= 8
    assert difference[-2:].mean() < difference.mean() + 1, "the change lies inside the chest"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_finding_is_said(kind):
    finding = kind(0.7, WHERE)
    report = write_report([finding], np.random.default_rng(1))
    assert finding.sentence in report["Findings_EN"]
    assert report["Impressions_EN"] == finding.impression
    assert set(finding.labels) <= set(LABELS)
    assert {label for label, there in label_row([finding]).items() if there} == set(finding.labels)


@pytest.mark.parametrize("where", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_nodule(where, volume):
    nodule = Nodule(0.6, (0.5, where, 0.5))
    hu, labels = volume(nodule)
    healthy_hu, healthy_labels = volume()
    inside = labels == LUNG_TUMOR
    assert np.isin(healthy_labels[inside], nodule.lobe).mean() > 0.8, "it lies in the lobe that the report names"
    ml = inside.sum() * np.prod(SCAN.grid.spacing_mm) / 1000
    sphere = np.pi / 6 * nodule.diameter_mm**3 / 1000
    assert 0.4 * sphere < ml < 1.6 * sphere
    assert hu[inside].mean() > healthy_hu[inside].mean() + 300
    assert str(nodule.diameter_mm) in nodule.impression


def test_effusion_replaces_lung_behind(volume):
    effusion = PleuralEffusion(0.6, (0.9, 0.9, 0.5))
    assert effusion.sides == ("right",) and "ight" in effusion.impression
    hu, labels = volume(effusion)
    _, healthy_labels = volume()
    fluid = np.isin(healthy_labels, LUNG_LOBES) & (labels == 0)
    assert fluid.sum() > 200
    assert 0 < np.median(hu[fluid]) < 30
    assert np.isin(healthy_labels[fluid], (30, 31, 32)).mean() > 0.95
    lung = np.argwhere(np.isin(labels, (30, 31, 32))).mean(0)
    assert np.argwhere(fluid).mean(0)[1] > lung[1] + 4
    assert np.argwhere(fluid).mean(0)[0] < lung[0]


@pytest.mark.parametrize("where", [0.1, 0.3, 0.5, 0.9])
def test_consolidation_keeps_its_lobe(where, volume):
    consolidation = Consolidation(0.8, (0.5, where, 0.5))
    hu, labels = volume(consolidation)
    healthy_hu, healthy_labels = volume()
    assert np.array_equal(labels, healthy_labels)
    dense = (hu > -300) & (healthy_hu < -600)
    assert dense.sum() > 60
    assert (labels[dense] == consolidation.lobe).mean() > 0.85


def test_emphysema_darkens_the_lungs(volume):
    hu, labels = volume(Emphysema(0.8, WHERE))
    healthy_hu, healthy_labels = volume()
    lung, healthy_lung = np.isin(labels, LUNG_LOBES), np.isin(healthy_labels, LUNG_LOBES)
    assert np.median(hu[lung]) < np.median(healthy_hu[healthy_lung]) - 25
    assert (hu[lung] < -950).mean() > 0.1 > (healthy_hu[healthy_lung] < -950).mean() * 5


def test_shapes_that_grow(volume):
    _, healthy = volume()
    for finding, label, least in ((Cardiomegaly(0.6, WHERE), 115, 1.2), (AorticDilatation(0.6, WHERE), 6, 1.2)):
        _, labels = volume(finding)
        assert (labels == label).sum() > least * (healthy == label).sum()


def test_hernia_lies_in_the_chest(volume):
    _, labels = volume(HiatalHernia(0.7, WHERE))
    _, healthy = volume()
    pouch = (labels == 12) & (healthy != 12)
    assert pouch.sum() > 15
    assert np.argwhere(pouch)[:, 0].mean() > np.argwhere(healthy == 12)[:, 0].max() - 4


def test_how_often():
    """Common findings in 20-35 % of patients, at most four in one, and some patients without any."""
    config = PhantomConfig(size=64)
    drawn = [Scan(config, "train", number).findings for number in range(1, 801)]
    share = {kind: np.mean([any(type(f) is kind for f in findings) for findings in drawn]) for kind in KINDS}
    for kind in (Consolidation, PleuralEffusion, Emphysema, Nodule, Cardiomegaly):
        assert 0.2 <= share[kind] <= 0.35, kind.__name__
    assert min(share.values()) > 0.02
    assert max(map(len, drawn)) == MOST
    assert 0.05 < np.mean([not findings for findings in drawn]) < 0.2


def test_reports_without_findings_or_impression():
    reports = [write_report([], np.random.default_rng(k)) for k in range(400)]
    share = np.mean([report["Impressions_EN"] == NOT_GIVEN for report in reports])
    assert 0.01 < share < 0.1
    assert len({report["Impressions_EN"] for report in reports}) > 3


def test_report_denies_nothing_that_is_there():
    effusion, heart = PleuralEffusion(0.5, WHERE), Cardiomegaly(0.5, WHERE)
    for k in range(60):
        text = write_report([effusion, heart], np.random.default_rng(k))["Findings_EN"]
        assert "Pleural effusion was not detected" not in text and "no pleural fluid" not in text
        assert "within normal limits" not in text


def test_findings_do_not_move_the_rest(volume):
    """A finding that does not alter the shape leaves the other lung as it was."""
    nodule = replace(Nodule(0.6, WHERE), where=(0.5, 0.1, 0.5))
    hu, _ = volume(nodule)
    healthy_hu, labels = volume()
    right = np.isin(labels, (30, 31, 32))
    assert np.array_equal(hu[right], healthy_hu[right])
