"""Whether the HU scale is right is decided by evidence; damage drawn at random never passes in silence."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_lightning.anatomy.state import IDENTITY, RESOLUTION_HU, Rescale, decide, histogram_of, scale_missed
from trace_lightning.config import PhantomConfig
from trace_lightning.data.phantom.scan import Scan

AT_1024, AT_8192 = Rescale(1.0, -1024.0), Rescale(1.0, -8192.0)
SOFT_HU = 45.0


@cache
def phantom(number: int) -> np.ndarray:
    hu, _ = Scan(PhantomConfig(size=48, spacing_z_mm=[8.0]), "train", number).render()
    return hu.astype(np.int32)


def verdict(array, version, listed, repair=False):
    decision = decide(array, version, listed, repair)
    return decision.state, decision.reason


@pytest.mark.parametrize("listed", [AT_1024, AT_8192], ids=str)
def test_what_folder_table_and_content_agree_on_is_used(listed):
    raw = phantom(1) - int(listed.intercept)
    assert verdict(phantom(1), "v2", listed) == ("hu", "ok")
    assert verdict(phantom(1), "v2", None) == ("hu", "ok")
    assert verdict(raw, "v1", listed) == ("raw", "ok")
    assert decide(raw, "v1", listed).rescale == listed


@pytest.mark.parametrize("listed", [AT_1024, AT_8192], ids=str)
def test_contradictions_are_refused_by_name_and_mended_on_request(listed):
    hu, intercept = phantom(2), int(listed.intercept)
    other = AT_8192 if listed == AT_1024 else AT_1024
    cases = {
        "rescaled_twice": (hu + intercept, "v2", listed),
        "raw_in_v2": (hu - intercept, "v2", listed),
        "hu_in_v1": (hu, "v1", listed),
        "wrong_intercept": (hu - int(other.intercept), "v1", listed),
    }
    for reason, (stored, version, table) in cases.items():
        refused = decide(stored, version, table)
        assert (refused.state, refused.reason, refused.mendable) == ("refused", reason, True)
        mended = decide(stored, version, table, repair=True)
        assert mended.state != "refused"
        np.testing.assert_array_equal(stored * mended.rescale.slope + mended.rescale.intercept, hu)


def test_raw_values_without_an_intercept_are_never_guessed():
    for repair in (False, True):
        assert verdict(phantom(1) + 1024, "v1", None, repair) == ("refused", "no_intercept")


def test_a_table_with_a_slope():
    assert verdict(2 * phantom(1) + 2000, "v1", Rescale(0.5, -1000.0)) == ("raw", "ok")
    assert verdict(2 * phantom(1) + 2000, "v1", AT_1024) == ("refused", "unexplained")


@pytest.mark.parametrize("padding", [-1024, -2048, -3024, -8192])
@pytest.mark.parametrize("share", [0.002, 0.2])
def test_padding_is_no_evidence(padding, share):
    """A field-of-view circle, or a few lines at the edge."""
    hu = phantom(3).copy()
    outside = np.hypot(*(np.mgrid[:48, :48] - 23.5))
    hu[:, outside > np.quantile(outside, 1 - share)] = padding
    assert decide(hu, "v2", AT_1024).state == "hu"
    assert decide(hu - 1024, "v2", AT_1024).reason == "rescaled_twice"
    raw = decide(hu + 1024, "v1", AT_1024)
    assert (raw.state, raw.rescale) == ("raw", AT_1024)
    assert padding in histogram_of(hu).padding


def test_volumes_without_a_picture():
    hu = phantom(1)
    zero_filled = hu.copy()
    zero_filled[:, :10] = 0
    for array, reason in (
        (np.zeros((9, 8, 8), np.int16), "constant"),
        (np.full((9, 8, 8), np.nan), "not_finite"),
        (np.where(hu > 400, np.nan, hu), "not_finite"),
        (zero_filled, "zero_filled"),
        (hu / 1000, "unexplained"),
        (hu * 1000, "unexplained"),
        (np.random.default_rng(0).normal(0, 300, hu.shape), "unexplained"),
        (np.clip(hu, -160, 240), "unexplained"),
        (-hu, "unexplained"),
    ):
        assert verdict(array, "v2", AT_1024) == ("refused", reason)


def test_nan_is_mended_on_request_only_where_the_rest_is_in_order():
    hu = phantom(1).astype(np.float32)
    hu[3, 4, 5] = np.inf
    assert verdict(hu, "v2", AT_1024, repair=True) == ("hu", "not_finite")
    assert verdict(hu * 3, "v2", AT_1024, repair=True) == ("refused", "unexplained")


damages = st.fixed_dictionaries(
    {
        "number": st.integers(1, 6),
        "offset": st.one_of(
            st.sampled_from([0, 0, 1000, 1024, -1024, -1000, 8192, -8192, 2048, 9216, -9216, -7168]),
            st.integers(-10_000, 10_000),
            st.integers(-300, 300),
        ),
        "slope": st.one_of(st.just(1.0), st.sampled_from([0.1, 0.5, 2.0, 10.0, -1.0]), st.floats(0.3, 3)),
        "noise": st.sampled_from([0, 10, 60]),
        "padding": st.sampled_from([None, -1024, -2048, -3024, -8192, 0, 3071]),
        "crop": st.tuples(*[st.tuples(st.floats(0, 0.3), st.floats(0, 0.3))] * 3),
        "clip": st.sampled_from([None, (-1000, 1000), (-1024, 3071), (-1000, 400)]),
        "version": st.sampled_from(["v1", "v2"]),
        "listed": st.sampled_from([None, IDENTITY, AT_1024, AT_8192, Rescale(1.0, -1000.0), Rescale(0.5, -1024.0)]),
        "repair": st.booleans(),
    }
)


@settings(max_examples=300, deadline=None)
@given(damage=damages)
def test_damage_at_random_never_gives_a_wrong_scale_in_silence(damage):
    """What is accepted has its soft tissue and its air where they were before the damage."""
    hu = phantom(damage["number"])
    hu = hu[
        tuple(
            slice(round(n * before), n - round(n * after))
            for n, (before, after) in zip(hu.shape, damage["crop"], strict=True)
        )
    ].astype(np.float64)
    hu += np.random.default_rng(0).normal(0, damage["noise"], hu.shape)
    if damage["clip"]:
        hu = hu.clip(*damage["clip"])
    if damage["padding"] is not None:
        hu[:, :2] = damage["padding"]
    stored = np.rint(hu * damage["slope"] + damage["offset"]).astype(np.int32)
    decision = decide(stored, damage["version"], damage["listed"], damage["repair"])
    if decision.state == "refused":
        return

    def read(true_hu):
        return (true_hu * damage["slope"] + damage["offset"]) * decision.rescale.slope + decision.rescale.intercept

    resolution_hu = RESOLUTION_HU + damage["noise"]  # noise flattens the peaks: 61 HU and more are found to pass
    assert abs(read(SOFT_HU) - SOFT_HU) <= resolution_hu
    assert abs(read(-1000) + 1000) <= resolution_hu + 0.25 * 1000
    if not damage["repair"] and damage["listed"] is not None:
        assert decision.rescale == (damage["listed"] if decision.state == "raw" else IDENTITY)


@pytest.mark.parametrize("number", range(1, 7))
def test_ordinary_variety_is_no_damage(number):
    """Noise, clipping, floating point and a tight field of view do not make a volume unusable."""
    hu = phantom(number)
    noisy = hu + np.random.default_rng(0).normal(0, 40, hu.shape)
    for array in (noisy, noisy.astype(np.float32), hu.clip(-1000, 1000), hu.clip(-1024, 600), hu[4:-4, 4:-4, 4:-4]):
        assert verdict(array, "v2", AT_1024) == ("hu", "ok")


@pytest.mark.parametrize("number", range(1, 7))
@pytest.mark.parametrize(
    ("inside", "percent"), [(np.s_[:, :, :], 10), (np.s_[4:-4, 10:-10, 10:-10], 25)], ids=["whole", "cropped"]
)
def test_how_finely_the_scale_is_known(number, inside, percent):
    hu = phantom(number)[inside]
    offsets = [n for n in range(-400, 401, 20) if decide(hu + n, "v2", AT_1024).state != "refused"]
    slopes = [n / 50 for n in range(25, 101) if decide(np.rint(hu * (n / 50)), "v2", AT_1024).state != "refused"]
    assert 0 in offsets
    assert max(map(abs, offsets)) <= RESOLUTION_HU
    assert 1 in slopes
    assert max(abs(slope - 1) * 100 for slope in slopes) <= percent


@pytest.mark.parametrize("intercept", [1024, 8192, -1024, -8192])
def test_a_scale_that_was_missed_is_told_by_content_alone(intercept):
    assert scale_missed(phantom(1) + intercept) == Rescale(1.0, -intercept)
    assert scale_missed((phantom(1) + intercept).astype(np.float32) + 0.25) == Rescale(1.0, -intercept)


@pytest.mark.parametrize("what", ["hu", "offset", "noise", "constant", "shares"])
def test_no_scale_is_named_without_evidence(what):
    hu = phantom(1)
    noise = np.random.default_rng(0).normal(1000, 300, hu.shape)
    shares = (hu + 1000) / 2000
    values = {"hu": hu, "offset": hu + 300, "noise": noise, "constant": np.zeros_like(hu), "shares": shares}[what]
    assert scale_missed(values) is None
