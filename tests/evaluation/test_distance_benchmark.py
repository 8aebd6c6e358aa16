import itertools

import pytest

from benchmarks.evaluation_distances import rows


def test_implementations_agree_on_the_same_features():
    pytest.importorskip("torch_fidelity")
    found = list(rows(sizes=((30, 60), (200, 60))))
    assert len(found) == 12
    for _, group in itertools.groupby(found, key=lambda row: row.name.split(":")[0]):
        values = [row.value for row in group]
        assert values == pytest.approx([values[0]] * len(values), rel=1e-3, abs=1e-6)
    assert all(row.seconds > 0 for row in found)
