import hashlib

import pytest

from evaluation import weights
from evaluation.__main__ import main
from evaluation.measure import Resources
from evaluation.metrics import all_metrics, find_metric
from evaluation.selection import all_measures
from evaluation.settings import Settings
from evaluation.weights import WEIGHTS, File, Weights
from trace_lightning.errors import UserError


@pytest.fixture
def own_weights(monkeypatch, tmp_path):
    """A publisher of our own: one file with a checksum, reachable by a file:// address."""
    source = tmp_path / "source.bin"
    source.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    entry = Weights("tiny", "Tiny", "MIT", (File("tiny/tiny.bin", source.as_uri(), f"sha256:{digest[:8]}"),))
    monkeypatch.setitem(weights.WEIGHTS, "tiny", entry)
    return source, tmp_path / "kept"


def test_every_metric_says_what_it_is():
    for spec in all_metrics():
        assert spec.what and spec.range and spec.source, spec.name
        assert not spec.weights or spec.weights in WEIGHTS, spec.name
        assert (spec.verified is None) == (not spec.network), spec.name


def test_every_number_of_a_measure_is_a_metric():
    for measure in all_measures(Settings(), Resources()):
        for name in measure.provides():
            assert find_metric(name) is not None, name


def test_metrics_are_listed_with_their_weights(tmp_path, capsys):
    (tmp_path / "i3d").mkdir()
    (tmp_path / "i3d" / "i3d_torchscript.pt").write_bytes(b"x")
    assert main(["metrics", "--weights", str(tmp_path), "--width", "220"]) is None
    printed = capsys.readouterr().out
    assert "i3d_kinetics400: present" in printed
    assert "dino_vitb16: absent" in printed
    assert "python -m evaluation weights fetch dino_vitb16" in printed
    assert "CC BY-NC 4.0" in printed
    for name in ("hd95_mm", "skill_<group>", "jerk_hu"):
        assert name in printed


def test_weights_are_fetched_checked_and_kept(own_weights, capsys):
    _, kept = own_weights
    assert main(["weights", "check", "tiny", "--weights", str(kept)]) == 1
    assert "weights fetch tiny" in capsys.readouterr().out
    assert main(["weights", "fetch", "tiny", "--weights", str(kept)]) == 0
    assert (kept / "tiny" / "tiny.bin").read_bytes() == b"weights"
    assert main(["weights", "check", "tiny", "--weights", str(kept)]) == 0
    assert "intact" in capsys.readouterr().out


def test_a_wrong_checksum_is_named_and_nothing_is_kept(own_weights, capsys):
    source, kept = own_weights
    source.write_bytes(b"other weights")
    assert main(["weights", "fetch", "tiny", "--weights", str(kept)]) == 1
    assert "its publisher's" in capsys.readouterr().out
    assert not (kept / "tiny" / "tiny.bin").exists()
    (kept / "tiny").mkdir(parents=True, exist_ok=True)
    (kept / "tiny" / "tiny.bin").write_bytes(b"damaged")
    assert main(["weights", "check", "tiny", "--weights", str(kept)]) == 1
    assert "sha256 is" in capsys.readouterr().out


def test_a_web_page_and_a_short_download_are_no_weights(own_weights, monkeypatch, tmp_path, capsys):
    source, kept = own_weights
    source.write_bytes(b"\n<!DOCTYPE html><html>log in</html>")
    monkeypatch.setitem(
        weights.WEIGHTS, "tiny", Weights("tiny", "Tiny", "MIT", (File("tiny/tiny.bin", source.as_uri()),))
    )
    assert main(["weights", "fetch", "tiny", "--weights", str(kept)]) == 1
    assert "a web page, not weights" in capsys.readouterr().out
    source.write_bytes(b"weights")
    monkeypatch.setattr("urllib.request.urlopen", lambda url: Cut(source.open("rb")))
    assert main(["weights", "fetch", "tiny", "--weights", str(kept)]) == 1
    assert "ended after 7 of 1000 bytes" in capsys.readouterr().out
    assert not (kept / "tiny" / "tiny.bin").exists()


class Cut:
    """An answer that promises more than it gives."""

    headers = {"Content-Length": "1000"}

    def __init__(self, stream):
        self.read, self.stream = stream.read, stream

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()


def test_weights_that_cannot_be_had(tmp_path, capsys):
    assert main(["weights", "fetch", "ct_clip", "--weights", str(tmp_path)]) == 1
    assert "request access" in capsys.readouterr().out
    with pytest.raises(UserError, match="nothing: no such weights; there are"):
        main(["weights", "check", "nothing"])
