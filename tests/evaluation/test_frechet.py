import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluation.frechet import (
    Moments,
    covariance_factor,
    frechet_distance,
    kernel_distance,
    nuclear_norm,
)


def exact(mean_a, cov_a, mean_b, cov_b, n=1000):
    """Distance of two Gaussians given by their moments."""
    a, b = (
        Moments(n, np.asarray(m, float), np.asarray(c, float) * (n - 1)) for m, c in ((mean_a, cov_a), (mean_b, cov_b))
    )
    return frechet_distance(a, b)


def surrogate(n, d, seed=0, offset=0.0, dtype=np.float64):
    """Non-negative features with a fast decaying spectrum, as Inception's."""
    rng = np.random.default_rng(seed)
    scales = np.arange(1, d + 1) ** -0.7 * 10
    basis = np.linalg.qr(np.random.default_rng(99).normal(size=(d, d)))[0]
    return (np.abs(rng.normal(size=(n, d)) * scales @ basis) + offset).astype(dtype)


def test_isotropic_gaussians():
    found = exact(np.zeros(16), np.eye(16), np.ones(16), 4 * np.eye(16))
    assert found.value == pytest.approx(32, abs=1e-9)
    assert found.raw == found.value


def test_covariances_that_do_not_commute():
    found = exact([0, 0], [[2, 1], [1, 2]], [0, 0], np.diag([1, 4]))
    assert found.value == pytest.approx(0.7712204476543, abs=1e-12)
    assert found.value == pytest.approx(9 - 2 * np.sqrt(10 + 2 * np.sqrt(12)))


def test_diagonal_covariances():
    rng = np.random.default_rng(0)
    a, b, mean = rng.random(40) * 5, rng.random(40) * 5, rng.normal(size=40)
    a[:7] = 0
    expected = np.square(np.sqrt(a) - np.sqrt(b)).sum() + np.square(mean).sum()
    assert exact(np.zeros(40), np.diag(a), mean, np.diag(b)).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [2, 30, 100, 300, 900])
def test_a_set_against_itself_is_at_zero(n):
    """Where the paper prints -6.7."""
    features = surrogate(n, 300)
    shuffled = np.random.default_rng(1).permutation(features)
    for other in (features, shuffled):
        found = frechet_distance(features, other)
        assert abs(found.raw) < 1e-8
        assert found.value >= 0
    assert abs(frechet_distance(Moments.of_array(features), Moments.of_array(shuffled)).raw) < 1e-3


def test_2048_features_of_few_float32_samples():
    features = surrogate(100, 2048, dtype=np.float32)
    assert abs(frechet_distance(features, features[::-1]).raw) < 1e-8


def test_bias_of_small_samples_is_the_analytic_one():
    d, n = 400, 2048
    rng = np.random.default_rng(3)
    found = frechet_distance(rng.normal(size=(n, d)), rng.normal(size=(n, d))).value
    assert 2 * d / n + d * (d + 1) / (2 * n) == pytest.approx(39.55, abs=0.01)
    assert found == pytest.approx(39.55, abs=0.5)


def test_the_routes_agree():
    """Rows, moments of one side, moments of both; against eigenvalues of the product, as others compute it."""
    a, b = surrogate(500, 60, 1), surrogate(50, 60, 2) * 1.2
    values = np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T)).astype(complex)
    delta = a.mean(axis=0) - b.mean(axis=0)
    expected = delta @ delta + np.trace(np.cov(a.T) + np.cov(b.T)) - 2 * np.sqrt(values).real.sum()
    moments = Moments.of_array(a), Moments.of_array(b)
    for x in (a, moments[0]):
        for y in (b, moments[1]):
            assert frechet_distance(x, y).value == pytest.approx(expected, rel=1e-7)
            assert frechet_distance(y, x).value == pytest.approx(expected, rel=1e-7)


def test_division_by_n():
    a, b = surrogate(40, 8, 1), surrogate(50, 8, 2)
    population = (
        Moments(41, a.mean(axis=0), np.cov(a.T, ddof=0) * 40),
        Moments(51, b.mean(axis=0), np.cov(b.T, ddof=0) * 50),
    )
    assert frechet_distance(a, b, ddof=0).value == pytest.approx(frechet_distance(*population).value)


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_ragged_batches_equal_one_shot(offset):
    features = surrogate(400, 50, offset=offset)
    parts = np.split(features, [1, 2, 9, 100, 101, 390])
    merged = Moments.of(parts[0])
    for part in parts[1:]:
        merged = merged + Moments.of(part)
    assert merged.n == 400
    np.testing.assert_allclose(merged.mean, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(merged.covariance(), np.cov(features.T), rtol=1e-10, atol=1e-10)
    assert abs(frechet_distance(merged, Moments.of_array(features)).raw) < 1e-3
    assert abs(frechet_distance(features, merged).raw) < 1e-3


def test_moments_of_torch_are_those_of_numpy():
    features = surrogate(30, 12)
    found, expected = Moments.of(torch.from_numpy(features)), Moments.of(features)
    np.testing.assert_allclose(found.scatter.numpy(), expected.scatter)


def test_factor_of_a_singular_covariance():
    covariance = np.cov(surrogate(10, 40).T)
    factor = covariance_factor(covariance)
    assert factor.shape == (9, 40)
    np.testing.assert_allclose(factor.T @ factor, covariance, atol=1e-12)
    assert nuclear_norm(factor @ factor.T) == pytest.approx(np.trace(covariance))
    assert covariance_factor(np.zeros((3, 3))).shape == (0, 3)


sets = arrays(np.float64, st.tuples(st.integers(2, 12), st.just(5)), elements=st.floats(-50, 50, width=32))


@given(sets, sets, st.floats(0.1, 10))
def test_symmetric_scaling_and_never_negative(a, b, scale):
    found = frechet_distance(a, b)
    assert found.value >= 0
    size = 1 + np.square(a).sum() + np.square(b).sum()
    assert found.raw > -1e-9 * size
    assert frechet_distance(b, a).value == pytest.approx(found.value, rel=1e-9, abs=1e-9 * size)
    assert frechet_distance(scale * a, scale * b).value == pytest.approx(
        scale**2 * found.value, rel=1e-7, abs=1e-7 * size
    )
    assert frechet_distance(a + 3, b + 3).value == pytest.approx(found.value, rel=1e-7, abs=1e-7 * size)
    assert frechet_distance(a, a + 3).value == pytest.approx(5 * 9, abs=1e-7 * size)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), "two vectors"),
        (np.zeros((5, 3)), np.zeros((5, 4)), "no distance"),
        (np.zeros((5, 3)), np.full((5, 3), np.nan), "NaN"),
        (np.zeros((5, 3, 1)), np.zeros((5, 3)), "shape"),
    ],
)
@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_refused(distance, a, b, message):
    with pytest.raises(ValueError, match=message):
        distance(a, b)


def test_moments_of_one_vector_are_refused():
    with pytest.raises(ValueError, match="two vectors"):
        frechet_distance(Moments.of(np.zeros((1, 3))), Moments.of(np.zeros((5, 3))))


def test_kernel_distance_by_hand():
    a, b = np.array([[0.0], [1.0]]), np.array([[2.0], [-1.0]])
    # k(x, y) = (xy + 1)^3: within a 1, within b (-1)^3 = -1, across (1, 1, 27, 0) / 4
    assert kernel_distance(a, b).value == pytest.approx(1 - 1 - 2 * 29 / 4)
    assert kernel_distance(a, b).std is None


def test_kernel_distance_of_equal_distributions_is_within_its_spread():
    rng = np.random.default_rng(0)
    found = [kernel_distance(rng.normal(size=(500, 64)), rng.normal(size=(500, 64)), seed=i) for i in range(12)]
    assert all(abs(one.value) < 3 * one.std for one in found)
    assert any(one.value < 0 for one in found)
    assert all(one.block == 50 for one in found)


def test_kernel_distance_tells_distributions_apart():
    rng = np.random.default_rng(0)
    found = kernel_distance(rng.normal(size=(500, 64)), rng.normal(size=(400, 64)) + 0.3)
    assert found.value > 4 * found.std


def test_kernel_distance_in_blocks_is_the_same(monkeypatch):
    a, b = surrogate(70, 20, 1), surrogate(50, 20, 2)
    whole = kernel_distance(a, b)
    monkeypatch.setattr("evaluation.frechet.ROWS", 16)
    parts = kernel_distance(a, b)
    assert (parts.value, parts.std) == (pytest.approx(whole.value), pytest.approx(whole.std))


@pytest.fixture(scope="module")
def features():
    return surrogate(700, 256, 1, dtype=np.float32), surrogate(600, 256, 2, dtype=np.float32) * 1.1


def test_torch_fidelity_s_frechet_distance(features):
    from torch_fidelity import metric_fid

    statistics = [metric_fid.fid_features_to_statistics(torch.from_numpy(x)) for x in features]
    expected = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(*features).value == pytest.approx(expected, rel=1e-6)


def test_torchmetrics_frechet_distance(features):
    from torchmetrics.image.fid import _compute_fid

    a, b = (torch.from_numpy(x).double() for x in features)
    expected = _compute_fid(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))
    assert frechet_distance(*features).value == pytest.approx(float(expected), rel=1e-6)


def test_torch_fidelity_s_kernel_distance(features):
    """One subset of everything is the estimate over all pairs."""
    from torch_fidelity import metric_kid

    a, b = (torch.from_numpy(x[:600]).double() for x in features)
    expected = metric_kid.kid_features_to_metric(a, b, kid_subsets=1, kid_subset_size=600, verbose=False)
    found = kernel_distance(a.numpy(), b.numpy()).value
    assert found == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)
