"""Memory that cannot be given back does not grow with the number of volumes."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FEW, MANY = 5, 45
MOST_BYTES_A_VOLUME = 30_000  # its arrays and its text are 330 kB; open maps and noise are about 16 kB at 40 volumes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measured by Linux' /proc")
def test_reading_many_volumes_takes_no_more_memory_than_few(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from memory import anonymous_bytes

    few, many = (anonymous_bytes(tmp_path, volumes, MANY) for volumes in (FEW, MANY))
    print(f"\n{few / 1e6:.2f} MB of {FEW} volumes, {many / 1e6:.2f} MB of {MANY}")
    assert many - few < (MANY - FEW) * MOST_BYTES_A_VOLUME
