from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from razor_ray import apportion as apportionment
from razor_ray.apportion import apportion
from razor_ray.config import WeighConfig
from razor_ray.weights import (
    IsplSettings,
    budget,
    class_quotas,
    class_shares,
    class_weights,
    default_beta,
    effective_number,
    inverse_diversity_weights,
    inverse_hard_weights,
    inverse_linear_weights,
    inverse_log_weights,
    inverse_mixture_weights,
    ispl_weights,
    loss_quantile,
    quota_mass,
)

seeded = settings(deadline=None, derandomize=True, max_examples=200)
thorough = settings(deadline=None, derandomize=True, max_examples=1200)
losses = st.lists(st.floats(0, 20), min_size=1, max_size=30).map(np.array)
thresholds = st.floats(1e-3, 0.999)


# Inverse self-paced weights.


def test_a_scheme_that_is_none():
    with pytest.raises(ValueError, match="there is no scheme 'soft'. Schemes: hard, linear, log, mixture, diversity"):
        ispl_weights([1.0], scheme="soft", threshold=1.0)  # type: ignore[arg-type]


def test_hand_worked_schemes():
    loss = np.array([0.0, 0.25, 0.5, 1.0])
    assert_array_equal(inverse_hard_weights(loss, 0.5), [0, 0, 1, 1])
    assert_allclose(inverse_linear_weights(loss, 0.5), [0, 0.5, 1, 1])
    # zeta = 1/2: 1 - ln(3/4) / ln(1/2) = 1 - (2 ln 2 - ln 3) / ln 2 = log2(3) - 1.
    assert_allclose(inverse_log_weights(loss, 0.5), [0, math.log2(3) - 1, 1, 1])
    # l1 = 1, l2 = 1/4, zeta = 1/3: at 1/2 it is 1 - (2 - 1) / 3.
    assert_allclose(inverse_mixture_weights(loss, 1.0, 0.25), [0, 0, 2 / 3, 1])


def test_hand_worked_diversity():
    # Thresholds of ranks 1, 2, 3: 1 + 1 = 2, 1 + 1 / (sqrt 2 + 1) = 1.414, 1 + 1 / (sqrt 3 + sqrt 2) = 1.318.
    weights = inverse_diversity_weights([1.9, 1.5, 1.3, 1.9], 1.0, 1.0, labels=[0, 1, 1, 1])
    # Class 0: 1.9 < 2. Class 1, ascending: 1.3 < 2, 1.5 >= 1.414, 1.9 >= 1.318.
    assert_array_equal(weights, [0, 1, 0, 1])


def test_equal_losses_of_a_class_weigh_the_same():
    # Alone, the first of three losses of 1.4 would pass as easy (threshold 2); as a group they have the third's 1.318.
    assert_array_equal(inverse_diversity_weights([1.4, 1.4, 1.4, 1.4], 1.0, 1.0, [0, 0, 0, 1]), [1, 1, 1, 0])


GRID = np.linspace(0, 1, 20_001)


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("scheme", ["hard", "linear", "log", "mixture"])
def test_weights_are_one_minus_the_minimiser_of_the_self_paced_objective(scheme, threshold):
    loss = np.random.default_rng(0).uniform(0, 1.5 * threshold, 40)
    zeta = 1 - threshold
    second = 0.3 * threshold
    mixture_zeta = threshold * second / (threshold - second)
    regulariser = {
        "hard": -threshold * GRID,
        "linear": threshold * (GRID**2 / 2 - GRID),
        "log": zeta * GRID - zeta**GRID / math.log(zeta),
        "mixture": -mixture_zeta * np.log(GRID + mixture_zeta / threshold),
    }[scheme]
    objective = GRID * loss[:, None] + regulariser  # (N, 20001)
    easy = GRID[objective.argmin(axis=1)]
    weights = ispl_weights(loss, scheme=scheme, threshold=threshold, second_threshold=second)
    assert_allclose(weights, 1 - easy, atol=1e-4)


@given(st.integers(0, 2**32), st.floats(0.05, 2), st.floats(0.05, 3), st.booleans())
@seeded
def test_diversity_minimises_its_objective(seed, threshold, step, tied):
    # The objective is concave, so that its minimum lies at a corner of the cube: u in {0, 1}^n.
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 8)
    loss = rng.uniform(0, 2 * threshold + step, 8)
    if tied:
        loss = np.round(3 * loss) / 3
    weights = inverse_diversity_weights(loss, threshold, step, labels)
    for label in np.unique(labels):
        of_class = np.sort(loss[labels == label])
        corners = np.array(list(itertools.product([0, 1], repeat=len(of_class))))
        objective = corners @ (of_class - threshold) - step * np.sqrt(corners.sum(axis=1))
        num_easy = corners[objective.argmin()].sum()
        # A group of equal losses that the minimiser splits is hard as a whole.
        while 0 < num_easy < len(of_class) and of_class[num_easy - 1] == of_class[num_easy]:
            num_easy -= 1
        assert (1 - weights[labels == label]).sum() == num_easy
        easy = loss[(labels == label) & (weights == 0)]
        assert_array_equal(np.sort(easy), of_class[:num_easy])


@given(losses, thresholds, st.floats(0.01, 0.99), st.randoms(use_true_random=False))
@seeded
def test_weights_are_in_bounds_rise_with_the_loss_and_ignore_the_order(loss, threshold, share, random):
    order = np.array(random.sample(range(len(loss)), len(loss)))
    labels = np.zeros(len(loss), np.int32)
    for scheme in ("hard", "linear", "log", "mixture", "diversity"):
        arguments = {"threshold": threshold, "second_threshold": share * threshold, "diversity_step": share}
        weights = ispl_weights(loss, scheme=scheme, labels=labels, **arguments)
        assert weights.dtype == np.float64 and ((weights >= 0) & (weights <= 1)).all()
        again = ispl_weights(loss[order], scheme=scheme, labels=labels, **arguments)
        assert_array_equal(again, weights[order])
        if scheme != "diversity":
            assert (np.diff(weights[np.argsort(loss)]) >= -1e-12).all()


@pytest.mark.parametrize("threshold", [5e-324, 1e-300, 1e-9, 0.999999, np.nextafter(1.0, 0.0)])
def test_schemes_stand_extreme_thresholds(threshold):
    loss = np.array([0.0, threshold / 2, np.nextafter(threshold, 0), threshold, 1.0, 1e300])
    with np.errstate(all="raise", under="ignore"):
        for weights in (inverse_linear_weights(loss, threshold), inverse_log_weights(loss, threshold)):
            assert weights[0] == 0 and (weights[3:] == 1).all() and ((weights >= 0) & (weights <= 1)).all()


def test_no_samples_weigh_nothing():
    for scheme in ("hard", "linear", "log", "mixture", "diversity"):
        weights = ispl_weights([], scheme=scheme, threshold=0.5, second_threshold=0.1, diversity_step=1, labels=[])
        assert weights.shape == (0,)


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_bad_losses_are_refused(bad):
    with pytest.raises(ValueError, match=r"losses .* position 1"):
        ispl_weights([0.0, bad], scheme="linear", threshold=1.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_bad_thresholds_are_refused(bad):
    with pytest.raises(ValueError, match="threshold must be positive"):
        ispl_weights([1.0], scheme="hard", threshold=bad)


def test_parameters_of_schemes_are_checked():
    with pytest.raises(ValueError, match=r"lower weigh\.quantile or choose scheme linear"):
        ispl_weights([1.0], scheme="log", threshold=1.0)
    with pytest.raises(ValueError, match="needs second_threshold"):
        ispl_weights([1.0], scheme="mixture", threshold=1.0)
    with pytest.raises(ValueError, match="below threshold"):
        ispl_weights([1.0], scheme="mixture", threshold=1.0, second_threshold=1.0)
    with pytest.raises(ValueError, match="needs diversity_step and labels"):
        ispl_weights([1.0], scheme="diversity", threshold=1.0, diversity_step=1.0)
    with pytest.raises(ValueError, match="shape"):
        ispl_weights([1.0], scheme="diversity", threshold=1.0, diversity_step=1.0, labels=[0, 1])


def test_hand_worked_loss_quantile():
    # A loss itself, never a mean of two: 7 of 10 losses are at most 0.7.
    tenths = np.arange(1, 11) / 10
    assert loss_quantile(tenths[::-1], 0.7) == 0.7
    assert loss_quantile(tenths, 0.71) == 0.8
    assert loss_quantile(np.arange(1, 381), 0.55) == 209  # 380 x 0.55 is 209, though 0.55 in binary is a little more
    assert (loss_quantile(tenths, 0), loss_quantile(tenths, 1)) == (0.1, 1.0)
    # A threshold of 0 would make everything hard.
    assert loss_quantile([0, 0, 0, 0.2, 0.3], 0.5) == 0.2
    assert loss_quantile([0, 0], 0.5) == 0.5


@given(losses, st.floats(0, 1))
@seeded
def test_loss_quantile_is_a_loss_that_enough_losses_do_not_exceed(loss, quantile):
    value = loss_quantile(loss, quantile)
    assert value > 0
    if (loss > 0).any():
        assert value in loss
        assert np.mean(loss <= value) >= quantile - 1e-12


@pytest.mark.parametrize(("loss", "quantile"), [([], 0.5), ([1.0], -0.1), ([1.0], math.nan), ([math.nan], 0.5)])
def test_bad_quantiles_are_refused(loss, quantile):
    with pytest.raises(ValueError, match="must"):
        loss_quantile(loss, quantile)


# Effective numbers and class weights.


def test_hand_worked_effective_number():
    # 1 + 1/2 + 1/4 = 7/4.
    assert_allclose(effective_number([0, 1, 2, 3, 1000], beta=0.5), [0, 1, 1.5, 1.75, 2])
    assert_array_equal(effective_number([0, 0.5, 1, 7], beta=0), [0, 1, 1, 1])
    # To first order E = n - n (n - 1) (1 - beta) / 2; the plain formula has lost its digits here.
    tiny = 2**-40
    assert_allclose(effective_number([10, 1000], beta=1 - tiny), [10 - 45 * tiny, 1000 - 499_500 * tiny], rtol=1e-15)


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=20).map(np.array), st.floats(0, 1, exclude_max=True))
@seeded
def test_effective_number_lies_between_one_and_the_number(num_samples, beta):
    effective = effective_number(num_samples, beta)
    assert (effective <= num_samples).all()
    assert (effective >= np.minimum(num_samples, 1)).all()
    assert (effective <= 1 / (1 - beta) * (1 + 1e-12)).all()
    assert (np.diff(effective[np.argsort(num_samples)]) >= 0).all()
    assert_allclose(effective_number(num_samples, np.nextafter(1.0, 0.0)), num_samples, rtol=1e-6)
    assert_allclose(effective_number(num_samples, 1e-300), np.minimum(num_samples, 1))


def test_hand_worked_default_beta():
    assert default_beta([30, 10]) == 0.95
    assert default_beta([30, 10, 0]) == 0.95
    assert default_beta([1, 1, 1]) == 0
    assert default_beta([1e17]) < 1
    assert default_beta([30, 10], passes=3) == 0.85
    assert default_beta([2, 2], passes=10 / 3) == 0
    with pytest.raises(ValueError, match="at least one sample"):
        default_beta([0, 0])
    for passes in (0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match="passes must be finite and at least 1"):
            default_beta([30, 10], passes)


def test_rarer_class_weighs_more():
    # beta -> 1: E_n -> n, so 1/30 and 1/10 have mean 1/15; divided by it they are 1/2 and 3/2.
    assert_allclose(class_weights(np.array([30.0, 10.0]), beta=1 - 1e-9), [0.5, 1.5], rtol=1e-6)


def test_class_without_weight_counts_as_one_sample():
    assert_allclose(class_weights([0.0, 0.3, 1.0], beta=0.9), [1, 1, 1])


@given(st.lists(st.floats(0, 1e7), min_size=1, max_size=20).map(np.array), st.floats(0, 1, exclude_max=True))
@seeded
def test_class_weights_add_up_to_the_classes_and_fall_with_the_count(counts, beta):
    weights = class_weights(counts, beta)
    assert_allclose(weights.sum(), len(counts))
    assert (weights > 0).all()
    assert (np.diff(weights[np.argsort(counts)]) <= 1e-12).all()


@pytest.mark.parametrize("beta", [-0.1, 1.0, math.nan])
def test_bad_beta_is_refused(beta):
    with pytest.raises(ValueError, match="beta must be in"):
        effective_number([1.0], beta)
    with pytest.raises(ValueError, match="beta must be in"):
        class_weights([1.0], beta)


@pytest.mark.parametrize("counts", [[-1.0], [math.nan], [math.inf], [[1.0]]])
def test_bad_counts_are_refused(counts):
    for function in (lambda: effective_number(counts, 0.5), lambda: default_beta(counts)):
        with pytest.raises(ValueError, match="num_samples must be"):
            function()
    with pytest.raises(ValueError, match="at least one class"):
        class_weights([], 0.5)


# Budget and quotas.


def test_hand_worked_budget():
    assert budget(1000, 0.3) == 300
    assert budget(7, 1.0) == 7
    # Python rounds halves to even: 2.5 -> 2, 3.5 -> 4.
    assert (budget(5, 0.5), budget(7, 0.5)) == (2, 4)


def test_bad_budgets_are_refused_with_the_mend():
    with pytest.raises(ValueError, match=r"in \(0, 1\], got 30.*to keep 30 % pass 0\.3"):
        budget(10, 30)
    for bad in (0.0, -0.5, 1.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"in \(0, 1\]"):
            budget(10, bad)
    with pytest.raises(ValueError, match=r"comes to 0 samples. Pass at least 0\.0033334"):
        budget(300, 0.001)
    assert budget(300, 0.0033334) == 1
    with pytest.raises(ValueError, match="nothing was scored"):
        budget(0, 0.5)


def test_hand_worked_quota_mass():
    arguments = {"ispl_mass": [1.5, 2.5], "num_samples": [30, 10], "recall": [0.75, 0.5]}
    assert_array_equal(quota_mass("ispl", **arguments), [1.5, 2.5])
    assert_array_equal(quota_mass("proportional", **arguments), [30, 10])
    assert_array_equal(quota_mass("uniform", **arguments), [1, 1])
    assert_array_equal(quota_mass("recall", **arguments), [0.25, 0.5])
    with pytest.raises(ValueError, match="one shape"):
        quota_mass("ispl", ispl_mass=[1.0], num_samples=[1, 2], recall=[1, 1])
    with pytest.raises(ValueError, match="recall must be in"):
        quota_mass("recall", ispl_mass=[1.0], num_samples=[1], recall=[1.5])


@given(
    classes=st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 3), st.integers(0, 60)), min_size=1, max_size=30),
    share=st.floats(0, 1),
    stretch=st.integers(1, 40),
)
@settings(deadline=None, derandomize=True, max_examples=400)
def test_apportion_in_stretches_is_apportion(classes, share, stretch):
    mass, floor, room = (np.array(values) for values in zip(*classes, strict=True))
    cap = floor + room
    total = int(floor.sum() + share * room.sum())
    at_once = apportion(mass, total, floor, cap)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apportionment, "_STRETCH", stretch)
        assert_array_equal(apportion(mass, total, floor, cap), at_once)


def test_memory_of_apportion_does_not_grow_with_the_total(monkeypatch):
    peaks = []
    monkeypatch.setattr(apportionment, "_STRETCH", 2**10)
    for total in (20_000, 200_000):
        tracemalloc.start()
        assert_array_equal(apportion([1, 3], total, [0, 0], [total, total]), [total // 4, total * 3 // 4])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_hand_worked_apportion():
    assert_array_equal(apportion([3, 2, 1], 12, [0, 0, 0], [9, 9, 9]), [6, 4, 2])
    # The third class is full at 1; the others share the rest evenly.
    assert_array_equal(apportion([1, 1, 9], 9, [0, 0, 0], [9, 9, 1]), [4, 4, 1])
    # The first is raised to its floor of 5; the rest is 4 = 2 + 2.
    assert_array_equal(apportion([0.1, 1, 1], 9, [5, 0, 0], [9, 9, 9]), [5, 2, 2])
    # No mass: nothing until the other is full; then the 5 that are left, 4 : 6 as there is room.
    assert_array_equal(apportion([0, 1, 0], 3, [0, 0, 0], [4, 3, 6]), [0, 3, 0])
    assert_array_equal(apportion([0, 1, 0], 8, [0, 0, 0], [4, 3, 6]), [2, 3, 3])
    assert_array_equal(apportion([0, 0], 5, [0, 0], [5, 5]), [3, 2])
    assert_array_equal(apportion([], 0, [], []), [])


def largest_remainder(mass: list[int], total: int) -> list[int]:
    shares = np.array(mass) * total / sum(mass)
    quotas = np.floor(shares).astype(int)
    quotas[np.argsort(quotas - shares, kind="stable")[: total - quotas.sum()]] += 1
    return quotas.tolist()


def test_no_alabama_paradox():
    # Shares 4.286, 4.286, 1.429 of 10 and 4.714, 4.714, 1.571 of 11: the third class would lose a sample.
    assert largest_remainder([6, 6, 2], 10) == [4, 4, 2]
    assert largest_remainder([6, 6, 2], 11) == [5, 5, 1]
    quotas = np.array([apportion([6, 6, 2], total, [0, 0, 0], [9, 9, 9]) for total in range(28)])
    assert (np.diff(quotas, axis=0) >= 0).all()
    assert_array_equal(quotas[14], [6, 6, 2])


def water_filling(mass: np.ndarray, total: int, floor: np.ndarray, cap: np.ndarray) -> np.ndarray:
    """Real-valued shares by bisection, slowly; classes without mass last."""
    free = mass > 0
    if total > cap[free].sum() + floor[~free].sum():
        shares = cap.astype(float)
        room = (cap - floor)[~free]
        shares[~free] = floor[~free] + room * (total - cap[free].sum() - floor[~free].sum()) / room.sum()
        return shares
    low, high = -400.0, 400.0
    for _ in range(100):
        level = (low + high) / 2
        if np.clip(np.exp(level) * mass, floor, cap).sum() < total:
            low = level
        else:
            high = level
    return np.clip(np.exp(high) * mass, floor, cap)


@st.composite
def apportionments(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masses, floors and caps: a long tail, classes of one sample, classes without mass, equal classes."""
    num_classes = draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    largest = draw(st.sampled_from([1, 3, 20, 200]))
    cap = np.ceil(rng.pareto(0.7, num_classes) * 2 + 1e-9).clip(1, largest).astype(np.int64)
    floor = np.minimum(cap, rng.integers(0, draw(st.integers(1, 6)), num_classes))
    spread = draw(st.sampled_from([0, 1, 10, 60]))
    mass = np.exp(spread * rng.standard_normal(num_classes))
    if draw(st.booleans()):
        mass = cap * np.round(mass, 1)  # proportional, with ties
    mass[rng.random(num_classes) < draw(st.sampled_from([0, 0.3]))] = 0
    return mass, floor, cap


@given(apportionments(), st.floats(0, 1))
@thorough
def test_apportion_is_exact_in_bounds_near_the_share_and_never_falls(layout, position):
    mass, floor, cap = layout
    first = int(floor.sum() + position * (cap - floor).sum())
    last = min(first + 5, int(cap.sum()))
    before = floor
    for total in range(first, last + 1):
        quotas = apportion(mass, total, floor, cap)
        assert quotas.dtype == np.int64 and quotas.sum() == total
        assert (quotas >= floor).all() and (quotas <= cap).all()
        assert (np.abs(quotas - water_filling(mass, total, floor, cap)) < 1 + 1e-6).all()
        assert (quotas >= before).all()
        before = quotas


@given(apportionments())
@settings(seeded, max_examples=30)
def test_apportion_never_falls_over_all_totals(layout):
    mass, floor, cap = layout
    totals = range(int(floor.sum()), int(cap.sum()) + 1)
    quotas = np.array([apportion(mass, total, floor, cap) for total in totals])  # (T, C)
    assert_array_equal(quotas[0], floor)
    assert_array_equal(quotas[-1], cap)
    assert (np.diff(quotas, axis=0) >= 0).all()


@given(apportionments(), st.integers(-600, 600))
@settings(seeded, max_examples=60)
def test_apportion_has_no_unit(layout, exponent):
    mass, floor, cap = layout
    total = int(floor.sum() + cap.sum()) // 2
    assert_array_equal(apportion(np.ldexp(mass, exponent), total, floor, cap), apportion(mass, total, floor, cap))


def test_apportion_stands_masses_of_any_size():
    # Beside 1e308 the small masses are none: they share what is left by their room, 2 : 6.
    assert_array_equal(apportion([5e-324, 1e308, 1e-30], 7, [0, 0, 0], [2, 3, 6]), [1, 3, 3])
    # Once the large class is full, the others share 1 : 3, whatever it weighed.
    assert_array_equal(apportion([1e-20, 1.0, 3e-20], 83, [0, 0, 0], [99, 3, 99]), [20, 3, 60])


def test_infeasible_totals_are_refused_with_the_numbers():
    with pytest.raises(ValueError, match="got 1, below the sum of the floors, 2"):
        apportion([1, 1], 1, [1, 1], [3, 3])
    with pytest.raises(ValueError, match="got 7, above the sum of the caps, 6"):
        apportion([1, 1], 7, [1, 1], [3, 3])
    with pytest.raises(ValueError, match="floor must not exceed cap, got 4 and 3 at position 1"):
        apportion([1, 1], 5, [1, 4], [3, 3])
    with pytest.raises(ValueError, match="one shape"):
        apportion([1, 1], 5, [1], [3, 3])
    with pytest.raises(ValueError, match="mass must be finite"):
        apportion([1, math.nan], 5, [1, 1], [3, 3])
    with pytest.raises(ValueError, match="floor must be integers"):
        apportion([1, 1], 5, [0.5, 1], [3, 3])


def test_hand_worked_class_quotas():
    # Floors of 2 (1 for the class of 1) take 5; by mass alone the first class would take all 9.
    assert_array_equal(class_quotas([1, 0, 0], [10, 10, 1], total=9, class_floor=2), [6, 2, 1])
    assert_array_equal(class_quotas([1, 1], [10, 10], total=20), [10, 10])
    assert_array_equal(class_quotas([1, 1, 1], [3, 3, 0], total=4), [2, 2, 0])


def test_infeasible_floors_are_refused_with_the_keep_fraction_that_works():
    # Floors take 1 + 3 + 3 = 7 of 21: a third.
    with pytest.raises(ValueError, match=r"takes 7 samples, but the budget is 6 of 21.*keep_fraction of at least") as e:
        class_quotas([1, 1, 1], [1, 10, 10], total=6, class_floor=3)
    keep_fraction = float(str(e.value).split("at least ")[1].split(",")[0])
    assert 7 / 21 <= keep_fraction < 7 / 21 + 1e-4
    assert class_quotas([1, 1, 1], [1, 10, 10], budget(21, keep_fraction), class_floor=3).tolist() == [1, 3, 3]
    with pytest.raises(ValueError, match="class_floor must be at least 0"):
        class_quotas([1], [1], 1, class_floor=-1)


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=8), st.integers(1, 20))
@seeded
def test_the_keep_fraction_that_the_message_names_works(sizes, class_floor):
    needed = sum(min(size, class_floor) for size in sizes)
    if needed < 2:
        return
    with pytest.raises(ValueError, match="at least ") as e:
        class_quotas(np.ones(len(sizes)), sizes, needed - 1, class_floor)
    keep_fraction = float(str(e.value).split("at least ")[1].split(",")[0])
    assert budget(sum(sizes), keep_fraction) >= needed


def test_classes_are_weighed_by_what_is_effective_of_them():
    # Weights (1 - 0.5) / (1 - 0.5^m): 2/3 and 1 of two and one effective samples; masses 4/3 and 1, so 8 and 6 of 14.
    shares = class_shares(
        num_samples=np.array([20, 20]),
        effective_count=np.array([2.0, 1.0]),
        recall=np.ones(2),
        budget=14,
        config=WeighConfig(beta=0.5),
    )
    assert shares.beta == 0.5
    assert shares.class_weight[0] / shares.class_weight[1] == pytest.approx(2 / 3)
    assert shares.quota.tolist() == [8, 6]


def test_more_passes_give_more_to_the_classes_of_more_hard_samples():
    # Two classes of 20 and ten passes: 1 - 10 * 2 / 40 is the beta of above, and so are the quotas.
    of_two = {"num_samples": np.array([20, 20]), "effective_count": np.array([2.0, 1.0]), "recall": np.ones(2)}
    assert class_shares(**of_two, budget=14, config=WeighConfig(), passes=10).quota.tolist() == [8, 6]
    fixed = class_shares(**of_two, budget=14, config=WeighConfig(beta=0.5), passes=3)  # which is not changed
    assert (fixed.beta, fixed.quota.tolist()) == (0.5, [8, 6])
    count = np.array([100.0, 300.0, 200.0])
    of_three = {"num_samples": np.full(3, 1000), "effective_count": count, "recall": np.ones(3)}
    quotas = [
        class_shares(**of_three, budget=600, config=WeighConfig(), passes=passes).quota for passes in (1, 2, 10 / 3)
    ]
    assert quotas[0].tolist() == [190, 210, 200]  # by x / (1 - exp(-x)) of x = 0.1, 0.3, 0.2 to a sample or so
    for low, high in itertools.pairwise(quotas):
        assert high[1] > low[1] and high[0] < low[0] and high.sum() == 600


def test_settings_are_parts_of_the_threshold():
    found = IsplSettings.of(WeighConfig(scheme="mixture", second_threshold=0.25, diversity_step=0.5), 2.0)
    assert (found.threshold, found.second_threshold, found.diversity_step) == (2.0, 0.5, 1.0)
    loss = np.array([0.2, 0.7, 3.0])
    np.testing.assert_array_equal(found.weigh(loss), inverse_mixture_weights(loss, 2.0, 0.5))
