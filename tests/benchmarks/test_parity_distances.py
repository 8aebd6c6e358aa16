from benchmarks.parity_distances import rows


def test_implementations_agree_on_the_same_features():
    found = list(rows(sizes=((30, 60), (200, 60))))
    assert len(found) == 2 * (2 + 1 + 1)  # Frechet by two, kernel by one, and a set to itself
    assert all(row.agrees for row in found)
    assert all(row.our_seconds > 0 for row in found)
