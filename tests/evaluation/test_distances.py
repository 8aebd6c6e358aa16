import itertools
import time

import numpy as np
import pytest

from evaluation.distances import (
    SET_METRICS,
    effective_samples,
    half_distances,
    set_distance,
)
from evaluation.features.extractors import EXTRACTORS
from evaluation.floor import floor_curve, plot_floor
from evaluation.frechet import frechet_distance, kernel_distance
from evaluation.resampling import FrechetResampler, KernelResampler
from evaluation.settings import protocol_names, read_protocol


def volumes(count, slices=12, d=30, seed=0, shift=0.0, alike=0.5, dtype=np.float32):
    """Features of volumes whose slices share a part of their variance."""
    rng = np.random.default_rng(seed)
    scales = np.arange(1, d + 1) ** -0.7

    def one():
        common, own = rng.normal(size=(1, d)), rng.normal(size=(slices, d))
        return ((np.sqrt(alike) * common + np.sqrt(1 - alike) * own) * scales + shift).astype(dtype)

    return {f"case_{i:03d}": one() for i in range(count)}


def together(features):
    return np.concatenate(list(features.values()))


def test_value_and_sizes():
    made, real = volumes(8, seed=1, shift=0.2), volumes(10, 9, seed=2)
    found = set_distance("frechet", [made], [real], samples=50)
    assert found.value == pytest.approx(frechet_distance(together(made), together(real)).value)
    assert (found.n_generated, found.n_reference, found.d) == (96, 90, 30)
    assert (found.volumes_generated, found.volumes_reference) == (8, 10)
    assert found.low < found.value < found.high
    assert found.floor.volumes == 5
    assert found.floor.n == 45
    assert 8 <= found.effective_generated < 96
    assert found.warnings == ()


def test_kernel_value():
    made, real = volumes(8, seed=1, shift=0.2), volumes(10, seed=2)
    found = set_distance("kernel", [made], [real], samples=50)
    assert found.value == found.raw == pytest.approx(kernel_distance(together(made), together(real)).value, rel=1e-9)
    assert found.low < found.value < found.high


@pytest.mark.parametrize("kind", ["frechet", "kernel"])
def test_a_set_against_itself(kind):
    """Drawn together, so that the interval knows that both sides are the same volumes."""
    real = volumes(10)
    found = set_distance(kind, [real], [real], samples=30)
    assert abs(found.raw) < (1e-8 if kind == "frechet" else 0.2)
    assert found.value >= 0 or kind == "kernel"
    if kind == "frechet":
        assert found.high < 1e-6
    assert found.floor.value > found.value


def test_three_planes_are_averaged():
    made, real = ([volumes(6, seed=10 * side + plane, shift=0.3 * side) for plane in range(3)] for side in (0, 1))
    found = set_distance("frechet", made, real, samples=20)
    each = [frechet_distance(together(a), together(b)).value for a, b in zip(made, real, strict=True)]
    assert found.value == pytest.approx(np.mean(each))
    assert found.low < found.value < found.high
    assert found.n_generated == 72


def test_few_samples_are_warned_about():
    found = set_distance("frechet", [volumes(4, d=100, seed=1)], [volumes(4, d=100)], samples=0)
    assert found.low is None
    assert "n = 48 for d = 100" in found.warnings[0]
    assert "real against real" in found.warnings[0]
    assert set_distance("kernel", [volumes(4, d=100, seed=1)], [volumes(4, d=100)], samples=0).warnings == ()


@pytest.mark.parametrize("kind", ["frechet", "kernel"])
def test_what_has_no_distance_says_why(kind):
    real = volumes(5)
    empty = {case: features[:0] for case, features in real.items()}
    found = set_distance(kind, [empty], [real])
    assert found.value is None
    assert "0 generated samples" in found.reason
    one_clip = {"case_000": real["case_000"][:1]}
    assert "1 real samples" in set_distance(kind, [real], [one_clip]).reason
    assert set_distance(kind, [{}], [{}]).reason


def test_one_volume_has_a_value_and_nothing_else():
    found = set_distance("frechet", [volumes(1, seed=1)], [volumes(1)])
    assert found.value > 0
    assert (found.low, found.floor, found.effective_generated) == (None, None, 1.0)


def test_short_volumes_are_left_out():
    real = volumes(6)
    made = volumes(6, seed=1) | {"case_003": np.empty((0, 30), np.float32)}
    found = set_distance("frechet", [made], [real], samples=10)
    assert (found.volumes_generated, found.volumes_reference) == (5, 6)


def test_records_are_json():
    import json

    found = json.loads(json.dumps(set_distance("frechet", [volumes(4, seed=1)], [volumes(4)], samples=5).to_json()))
    assert found["floor"]["splits"] == 10
    assert found["reason"] is None


def drawn_again(features, weights):
    return np.concatenate([found for found, n in zip(features.values(), weights, strict=True) for _ in range(int(n))])


@pytest.mark.parametrize(("slices", "d"), [(12, 30), (3, 300), (40, 30)])
def test_resampled_frechet_is_exact_where_all_components_are_kept(slices, d):
    a, b = volumes(7, slices, d, 1, 0.3), volumes(9, slices, d, 2)
    resampler = FrechetResampler(list(a.values()), list(b.values()))
    rng = np.random.default_rng(0)
    for _ in range(5):
        wa, wb = (rng.multinomial(n, np.full(n, 1 / n)) for n in (7, 9))
        expected = frechet_distance(drawn_again(a, wa), drawn_again(b, wb)).raw
        assert resampler(wa.astype(float), wb.astype(float)) == pytest.approx(expected, rel=1e-4)


def test_resampled_frechet_with_a_fifth_of_the_components(monkeypatch):
    """The spread, which is all that the interval takes from it, is within 10 % of that computed anew."""
    monkeypatch.setattr("evaluation.resampling.RANK", 40)
    a, b = volumes(15, 15, 200, 1, 0.3), volumes(15, 15, 200, 2)
    resampler = FrechetResampler(list(a.values()), list(b.values()))
    assert resampler(np.ones(15), np.ones(15)) == pytest.approx(resampler.exact.raw)
    rng = np.random.default_rng(0)
    draws = [[rng.multinomial(15, np.full(15, 1 / 15)) for _ in range(2)] for _ in range(20)]
    fast = [resampler(*(w.astype(float) for w in draw)) for draw in draws]
    anew = [frechet_distance(drawn_again(a, wa), drawn_again(b, wb)).raw for wa, wb in draws]
    assert np.std(fast) == pytest.approx(np.std(anew), rel=0.1)
    assert np.corrcoef(fast, anew)[0, 1] > 0.99


def test_resampled_kernel_pairs_no_sample_with_its_copies():
    a, b = volumes(4, 3, 5, 1), volumes(3, 2, 5, 2)
    resampler = KernelResampler(list(a.values()), list(b.values()))
    weights = np.array([2.0, 0, 1, 1]), np.array([1.0, 2, 0])

    def within(features, w):
        labels = [
            (i, s)
            for i, (f, n) in enumerate(zip(features.values(), w, strict=True))
            for _ in range(int(n))
            for s in range(len(f))
        ]
        x = np.stack([list(features.values())[i][s].astype(float) for i, s in labels])
        kernel = (x @ x.T / 5 + 1) ** 3
        different = np.array([[p != q for q in labels] for p in labels])
        return kernel[different].mean(), x

    (inside_a, x), (inside_b, y) = (within(f, w) for f, w in zip((a, b), weights, strict=True))
    expected = inside_a + inside_b - 2 * ((x @ y.T / 5 + 1) ** 3).mean()
    assert resampler(*weights) == pytest.approx(expected)


def test_interval_covers_the_spread_over_fresh_sets():
    """Not narrower than the spread of the distance between new sets of as many volumes, nor three times as wide."""
    values = [
        frechet_distance(together(volumes(20, seed=2 * i, shift=0.2)), together(volumes(20, seed=2 * i + 1))).value
        for i in range(100, 160)
    ]
    widths = []
    for i in range(6):
        found = set_distance(
            "frechet",
            [volumes(20, seed=2 * i, shift=0.2)],
            [{f"r{k}": v for k, v in volumes(20, seed=2 * i + 1).items()}],
            splits=0,
        )
        widths.append((found.high - found.low) / (2 * 1.96))
    assert 0.9 * np.std(values) < np.mean(widths) < 2.5 * np.std(values)


def test_effective_samples():
    rng = np.random.default_rng(0)
    independent = [rng.normal(size=(20, 500)) for _ in range(10)]
    assert effective_samples(independent) == pytest.approx(200, rel=0.1)
    copies = [np.repeat(rng.normal(size=(1, 500)), 20, axis=0) for _ in range(10)]
    assert effective_samples(copies) == pytest.approx(10)
    assert effective_samples([np.zeros((5, 3)), np.zeros((5, 3))]) == pytest.approx(10)
    assert effective_samples([np.zeros((1, 3))] * 4) == 4


def test_floor_is_the_null_distance_of_halves():
    """Independent normal samples: 2d / n + d (d + 1) / (2n), part 2.3 of the bias formula, for n much above d."""
    rng = np.random.default_rng(0)
    d, slices = 20, 100
    real = {f"case_{i}": rng.normal(size=(slices, d)) for i in range(20)}
    points = floor_curve(real, splits=20)
    assert [point.volumes for point in points] == [1, 2, 4, 8, 10]
    for point in points[1:]:
        assert point.value == pytest.approx(2 * d / point.n + d * (d + 1) / (2 * point.n), rel=0.15)
    assert all(a.value > b.value for a, b in itertools.pairwise(points))
    assert set_distance("frechet", [real], [real], samples=0).floor.value == pytest.approx(points[-1].value, rel=0.1)


def test_kernel_floor_is_about_zero():
    real = list(volumes(10, alike=0.0).values())
    found = half_distances("kernel", real, 5, 30)
    assert abs(found.mean()) < 3 * found.std() / np.sqrt(30) + 0.01
    order = np.random.default_rng(0).permutation(10)
    a, b = (np.concatenate([real[i] for i in part]) for part in (order[:5], order[5:]))
    assert found[0] == pytest.approx(kernel_distance(a, b).value, rel=1e-6, abs=1e-9)


def test_floor_curves_that_do_not_fit():
    with pytest.raises(ValueError, match="no two groups"):
        floor_curve(volumes(1))
    with pytest.raises(ValueError, match="no two groups"):
        floor_curve(volumes(5), volumes=[3])
    assert [p.volumes for p in floor_curve(volumes(6, slices=1))] == [2, 3]


def test_chunks_by_hand():
    """One feature a sample: the distance is (difference of means)^2 + (difference of deviations)^2."""
    made = {f"{i}": np.array([[value], [value + 2.0]]) for i, value in enumerate((0.0, 0.0, 10.0, 10.0, 5.0))}
    real = {f"{i}": np.array([[value], [value + 2.0]]) for i, value in enumerate((1.0, 1.0, 10.0, 10.0, 8.0))}
    found = set_distance("frechet", [made], [real], chunk=2)
    assert found.value == pytest.approx((1 + 0 + 9) / 3)
    assert (found.n_generated, found.low, found.floor) == (10, None, None)
    assert "3 chunks of at most 2 pairs" in found.warnings[0]
    assert set_distance("frechet", [made], [real]).value != pytest.approx(found.value)
    single = {name: view[:1] for name, view in made.items()}
    assert set_distance("frechet", [single], [single], chunk=2).warnings[0].startswith("mean over 2 chunks")
    assert "no chunk of 1" in set_distance("frechet", [single], [single], chunk=1).reason


def test_floor_is_drawn(tmp_path):
    plot_floor({"phantom": floor_curve(volumes(8))}, tmp_path / "floor.png", ylabel="FVD", d=30, values={"ours": 3.0})
    assert (tmp_path / "floor.png").read_bytes().startswith(b"\x89PNG")


def test_table_of_metrics():
    for metric in SET_METRICS.values():
        extractor = EXTRACTORS[metric.extractor]
        assert (metric.cut == "clips") == (extractor.inputs == "clips")
        for name in protocol_names():
            assert metric.cuts(read_protocol(name).views())
    assert SET_METRICS["fid_2p5d"].cuts(read_protocol("vlm3d").views()) == ("SRA", "RAS", "ARS")
    assert SET_METRICS["fid"].cuts(read_protocol("trace").views()) == ("SPL",)


@pytest.mark.slow
def test_a_bootstrap_of_2048_features_is_affordable():
    a, b = volumes(10, 30, 2048, 1, 0.1), volumes(10, 30, 2048, 2)
    start = time.process_time()
    found = set_distance("frechet", [a], [b], samples=200, splits=3)
    assert time.process_time() - start < 90
    assert found.bootstrap_samples == 200
