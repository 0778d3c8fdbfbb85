"""The levels of hardness and the window over them: by hand, and laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from razor_ray.config import SampleConfig
from razor_ray.window import Levels, Window, auto_focus, auto_sharpness, contradicted_fraction, difficulty, passes

FLOATS = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=80)


# --- levels -----------------------------------------------------------------------------------------------------------


def test_levels_by_hand():
    # Of five, one is easier than the three that are alike: (1 + 3 / 2) / 5.
    hardness = [0.3, -2.0, 0.3, 7.0, 0.3]
    assert_allclose(Levels.counted(hardness).of(hardness), [0.5, 0.1, 0.5, 0.9, 0.5])


def test_levels_of_all_signs_and_sizes():
    hardness = np.array([-3e30, -2.0, -1e-30, 0.0, 1e-30, 1e-3, 2.0, 3e30])
    assert_array_equal(Levels.counted(hardness).of(hardness), (np.arange(8) + 0.5) / 8)
    assert_array_equal(Levels.counted([-0.0, 0.0, 1.0]).of([-0.0, 0.0, 1.0]), [1 / 3, 1 / 3, 5 / 6])


def test_levels_tell_a_thousandth_apart():
    # As near 0 as it is near 1: what easy data needs, most of whose EL2N is tiny.
    for scale in (1.0, 1e-7):
        hardness = scale * (1 + np.arange(5) / 1000)
        assert_array_equal(Levels.counted(hardness).of(hardness), (np.arange(5) + 0.5) / 5)


def test_levels_are_bounded_in_number():
    # Whatever there is, no more than 2^20 of them: values that differ by less than a part in four thousand are alike.
    hardness = np.arange(1, 2**22, dtype=np.uint32).view(np.float32) * np.float32(1e38)
    assert 2**9 < len(Levels.counted(hardness).code) <= 2**20
    assert np.ptp(Levels.counted([1.0, 1.0002]).of([1.0, 1.0002])) == 0
    assert np.ptp(Levels.counted([1.0, 1.0005]).of([1.0, 1.0005])) == 0.5


@given(FLOATS)
def test_levels_are_ranks(hardness):
    hardness = np.array(hardness, np.float32)
    level = Levels.counted(hardness).of(hardness)
    assert ((level > 0) & (level < 1)).all()
    assert (np.diff(level[np.argsort(hardness)]) >= 0).all()
    assert level.mean() == pytest.approx(0.5)  # whatever is alike
    # Of values that are alike or far apart these are the middle ranks.
    powers = np.sign(hardness) * 2.0 ** np.round(np.log2(np.abs(hardness) + 1e-30))
    exact = (stats.rankdata(powers) - 0.5) / len(powers)
    assert_allclose(Levels.counted(powers).of(powers), exact, rtol=1e-12)


@given(FLOATS, st.integers(1, 5), st.integers(0, 2**32))
def test_levels_do_not_depend_on_who_counted(hardness, num_parts, seed):
    rng = np.random.default_rng(seed)
    whole = Levels.counted(hardness)
    parts = np.array_split(rng.permutation(hardness), num_parts)
    merged = Levels.merged([Levels.counted(part) for part in parts])
    assert_array_equal(merged.code, whole.code)
    assert_array_equal(merged.count, whole.count)
    assert merged.count.sum() == len(hardness)
    assert_array_equal(merged.of(hardness[:3]), whole.of(hardness)[:3])


def test_levels_refuse():
    with pytest.raises(ValueError, match="values that were not counted"):
        Levels.counted([1.0, 2.0]).of([1.5])
    with pytest.raises(ValueError, match="values that were not counted"):
        Levels.counted([1.0, 2.0]).of([3.0])
    with pytest.raises(ValueError, match="NaN"):
        Levels.counted([1.0, np.nan])
    assert Levels.counted([]).of([]).tolist() == []


# --- the window -------------------------------------------------------------------------------------------------------


def test_window_by_hand():
    # Focus 1/4 and sharpness 4: u (1 - u)^3.
    level = np.array([0.25, 0.5, 0.9])
    expected = level * (1 - level) ** 3
    assert_allclose(np.exp(Window(0.25, 4.0).log_weights(level)), expected, rtol=1e-12)
    assert_array_equal(Window(0.25, 0.0).log_weights(level), [0, 0, 0])
    assert_allclose(np.exp(Window(1.0, 2.0).log_weights(level)), level**2)
    assert_allclose(np.exp(Window(0.0, 2.0).log_weights(level)), (1 - level) ** 2)


@given(st.floats(0.02, 0.98), st.floats(0.1, 500))
def test_window_is_a_beta_density_around_its_focus(focus, sharpness):
    level = np.linspace(0.005, 0.995, 199)
    log_weight = Window(focus, sharpness).log_weights(level)
    beta = stats.beta.logpdf(level, 1 + sharpness * focus, 1 + sharpness * (1 - focus))
    assert np.ptp(log_weight - beta) < 1e-6 * (1 + sharpness)
    assert abs(level[log_weight.argmax()] - focus) <= 0.005 + 1e-9


def test_auto_by_hand():
    # CIFAR-10, of which a proxy contradicts a fifth, and data of which it contradicts nothing.
    assert [difficulty(each) for each in (0.0, 0.1, 0.2, 0.9)] == pytest.approx([0.0, 0.5, 1.0, 1.0])
    assert auto_focus(0.1, 0.2) == auto_focus(0.1, 0.6) == pytest.approx(math.exp(-1.26))
    assert auto_focus(0.1, 0.1) == pytest.approx(math.exp(-0.63))
    assert auto_focus(1.0, 0.2) == auto_focus(0.1, 0.0) == 0.7
    assert auto_focus(1.0, 0.2, "steps") == auto_focus(0.1, 0.0, "steps") == 0.75
    assert auto_sharpness(0.1, 0.2) == auto_sharpness(0.1, 0.4) == pytest.approx(7.0)
    assert auto_sharpness(0.1, 0.1) == pytest.approx(3.5)
    assert [auto_sharpness(keep, 0.2) for keep in (0.01, 0.5, 1.0)] == pytest.approx([70.0, 1.4, 0.7])
    assert auto_sharpness(0.1, 0.0) == 0.0
    window = Window.of(SampleConfig(), 0.1, 0.2)
    assert (window.focus, window.sharpness) == (auto_focus(0.1, 0.2), auto_sharpness(0.1, 0.2))
    assert Window.of(SampleConfig(focus=0.4, gamma=0.0), 0.1, 0.2) == Window(0.4, 0.0)


def test_a_longer_training_wants_harder_samples_by_hand():
    assert [passes(keep, "epochs") for keep in (0.01, 0.25, 1.0)] == [1.0, 1.0, 1.0]
    assert [passes(keep, "steps") for keep in (0.01, 0.3, 0.5, 1.0)] == pytest.approx([10 / 3, 10 / 3, 2.0, 1.0])
    longer = SampleConfig(trained_for="steps")
    window = Window.of(longer, 1 / 32, 0.2)  # the fifth root of which is a half
    assert (window.focus, window.sharpness) == pytest.approx((math.exp(-0.7), 0.7 * 32 * 10 / 3))
    window = Window.of(longer, 0.3, 0.2)
    assert (window.focus, window.sharpness) == pytest.approx((math.exp(-1.4 * (1 - 0.3**0.2)), 0.7 / 0.09))
    assert auto_sharpness(1.0, 0.2, "steps") == auto_sharpness(1.0, 0.2)  # where both are the same training
    given_both = SampleConfig(trained_for="steps", focus=0.4, gamma=3.0)
    assert Window.of(given_both, 0.25, 0.2) == Window(0.4, 3.0)


@given(st.floats(0.001, 1), st.floats(0.001, 1), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["epochs", "steps"]))
def test_auto_is_easier_and_sharper_as_the_budget_falls(one, other, some, more, trained_for):
    low, high = sorted((one, other))
    some, more = sorted((some, more))
    highest = {"epochs": 0.7, "steps": 0.75}[trained_for]
    assert 0 < auto_focus(low, some, trained_for) <= auto_focus(high, some, trained_for) <= highest
    assert auto_focus(low, more, trained_for) <= auto_focus(low, some, trained_for)
    assert auto_sharpness(low, some, trained_for) >= auto_sharpness(high, some, trained_for) >= 0
    assert auto_sharpness(low, more, trained_for) >= auto_sharpness(low, some, trained_for)


@given(st.floats(0.001, 1), st.floats(0, 1))
def test_auto_is_harder_and_sharper_the_longer_the_training(keep, contradicted):
    assert auto_focus(keep, contradicted, "epochs") <= auto_focus(keep, contradicted, "steps")
    assert auto_sharpness(keep, contradicted, "epochs") <= auto_sharpness(keep, contradicted, "steps")


@pytest.mark.parametrize("keep", [0.0, -0.3, 30, math.nan])
def test_rules_refuse_what_is_out_of_range(keep):
    for rule in (auto_focus, auto_sharpness):
        with pytest.raises(ValueError, match="keep_fraction must be in"):
            rule(keep, 0.2)
        with pytest.raises(ValueError, match="contradicted_fraction must be in"):
            rule(0.5, -0.1)
        with pytest.raises(ValueError, match="'epochs' or 'steps', got 'step'"):
            rule(0.5, 0.2, "step")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keep", "contradicted", "match"),
    [(0.0, 0.0, "keep_fraction"), (30, 0.0, "keep_fraction"), (0.3, 1.1, "contradicted_fraction")],
)
def test_auto_refuses(keep, contradicted, match):
    for trained_for in ("epochs", "steps"):
        with pytest.raises(ValueError, match=f"{match} must be in"):
            Window.of(SampleConfig(trained_for=trained_for), keep, contradicted)


def test_contradicted_fraction_by_hand():
    assert contradicted_fraction(np.array([-1.0, 0.0, 0.1, 3.0, -0.2])) == 2 / 5
    assert contradicted_fraction(np.zeros(0)) == 0.0
    with pytest.raises(ValueError, match="NaN"):
        contradicted_fraction(np.array([np.nan]))
