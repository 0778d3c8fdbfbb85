"""The methods to compare with: their definitions by hand, and what all of them promise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from razor_ray import baselines
from razor_ray.methods import METHODS
from razor_ray.selection import Samples


def samples(num_samples: int = 300, num_classes: int = 4, seed: int = 0) -> Samples:
    """A skewed layout with every score that a method may ask for."""
    rng = np.random.default_rng(seed)
    p = rng.beta(4, 1.5, num_samples)
    deviation = rng.random(num_samples) * 0.3
    return Samples(
        ids=rng.permutation(10 * num_samples)[:num_samples],
        label=rng.choice(num_classes, num_samples, p=rng.dirichlet(np.ones(num_classes))),
        scores={
            "loss": -np.log(p),
            "el2n": (1 - p) * 1.2,
            "margin": 1 - 2 * p,
            "correct": p > 0.5,
            "mean_p": p,
            "dual": deviation * (1 - p),
            "dyn_unc": deviation,
            "forgetting": rng.integers(0, 4, num_samples),
        },
        embedding=rng.normal(size=(num_samples, 5)).astype(np.float32),
    )


def plain(score, name="el2n", label=None) -> Samples:
    score = np.asarray(score, float)
    label = np.zeros(len(score), int) if label is None else np.asarray(label)
    return Samples(ids=np.arange(len(score)), label=label, scores={name: score}, hardness=name)


def kept(mask) -> list[int]:
    return np.flatnonzero(mask).tolist()


# What all promise.


def test_what_nothing_tells_apart_is_refused():
    twice = Samples(ids=np.array([1, 2, 2]), label=np.zeros(3, int), scores={"el2n": np.arange(3.0)}, hardness="el2n")
    for method in (baselines.random, baselines.random_balanced, baselines.hardest_first, baselines.ccs):
        with pytest.raises(ValueError, match="ids occur more than once"):
            method(twice, 1, 0)


@pytest.mark.parametrize("name", METHODS)
@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(20, 200), st.integers(1, 5), st.floats(0.05, 1.0), st.integers(0, 2**31))
def test_the_budget_is_met_exactly_and_order_does_not_matter(name, num_samples, num_classes, fraction, seed):
    given_samples = samples(num_samples, num_classes, seed)
    budget = max(num_classes, round(fraction * num_samples))  # the razor keeps one of every class
    mask = METHODS[name](given_samples, budget, seed)
    assert mask.dtype == bool
    assert mask.sum() == budget
    order = np.random.default_rng(seed).permutation(num_samples)
    np.testing.assert_array_equal(METHODS[name](given_samples.take(order), budget, seed), mask[order])


@pytest.mark.parametrize("name", METHODS)
def test_what_has_one_id_is_told_apart_by_the_tie_break(name):
    given_samples = samples(seed=3)
    rounded = {key: np.round(np.asarray(score, float), 1) for key, score in given_samples.scores.items()}
    doubled = replace(
        given_samples, ids=given_samples.ids // 40, scores=rounded | {"loss": given_samples.scores["loss"]}
    )
    assert len(np.unique(doubled.ids)) < 80
    doubled = replace(doubled, tie_break=np.arange(300))
    mask = METHODS[name](doubled, 100, 5)
    assert mask.sum() == 100
    order = np.random.default_rng(1).permutation(300)
    np.testing.assert_array_equal(METHODS[name](doubled.take(order), 100, 5), mask[order])


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"razor"}))
@pytest.mark.parametrize("budget", [-3, 0, 301])
def test_a_budget_that_cannot_be_met_is_refused(name, budget):
    with pytest.raises(ValueError, match=r"the budget must be in 1\.\.300"):
        METHODS[name](samples(), budget, 0)


@pytest.mark.parametrize("name", METHODS)
def test_a_seed_out_of_range_is_refused(name):
    with pytest.raises(ValueError, match="seed must be in"):
        METHODS[name](samples(), 100, -1)


@pytest.mark.parametrize("name", METHODS)
def test_the_seed_decides_what_is_random(name):
    given_samples = samples()
    masks = [METHODS[name](given_samples, 100, seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(masks[0], masks[1])
    deterministic = name in ("hardest", "moderate", "dyn_unc")  # no two of these samples are equal
    assert np.array_equal(masks[0], masks[2]) == deterministic


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"razor"}))
def test_a_budget_of_everything_keeps_everything(name):
    assert METHODS[name](samples(), 300, 0).all()


# By definition.


def test_hardest_first_by_hand():
    assert kept(baselines.hardest_first(plain([0.3, 0.9, 0.1, 0.5]), 2, 0)) == [1, 3]


def test_forgetting_takes_the_never_learned_first():
    # Three epochs: two were forgotten once or twice, one was never learned, which counts as 4.
    assert kept(baselines.forgetting(plain([1, 4, 0, 2], "forgetting"), 2, 0)) == [1, 3]


def test_random_takes_every_sample_equally_often():
    given_samples = plain(np.zeros(20))
    counts = sum(baselines.random(given_samples, 5, seed).astype(int) for seed in range(2000))
    # 500 each expected, standard deviation 19.
    assert abs(counts - 500).max() < 90


def test_random_balanced_by_hand():
    label = [0] * 10 + [1] * 10 + [2] * 2
    mask = baselines.random_balanced(plain(np.zeros(22), label=label), 12, 3)
    assert np.bincount(np.asarray(label)[mask]).tolist() == [5, 5, 2]  # the small class whole, its rest to the others
    label = [0] * 100 + [1] * 10
    mask = baselines.random_balanced(plain(np.zeros(110), label=label), 8, 3)
    assert np.bincount(np.asarray(label)[mask]).tolist() == [4, 4]


def test_what_random_balanced_has_left_over_goes_to_no_class_in_particular():
    label = np.repeat(np.arange(10), 20)
    counts = [np.bincount(label[baselines.random_balanced(plain(label, label=label), 25, seed)]) for seed in range(400)]
    assert {tuple(sorted(of_seed)) for of_seed in counts} == {(2,) * 5 + (3,) * 5}
    # Five of ten have one more: 200 times each, standard deviation 10.
    assert abs(np.sum(counts, axis=0) - 1000).max() < 50


def test_dyn_unc_by_hand():
    given_samples = plain([0.1, 0.3, 0.2], "dyn_unc")
    assert kept(baselines.dyn_unc(given_samples, 2, 0)) == [1, 2]


def test_ccs_by_hand():
    # The hardest tenth (two of 20) goes. Left: 12 in the lowest stratum, 4 in the next, 2 in the last of three.
    score = [0.0] + [0.1] * 11 + [0.4] * 4 + [0.9] * 2 + [5.0, 6.0]
    mask = baselines.ccs(plain(score), 9, 0, tail=0.1, num_strata=3)
    in_stratum = [mask[:12].sum(), mask[12:16].sum(), mask[16:18].sum()]
    # Smallest first: 2 of 2 (a third of 9 is 3), then 3 of 4 (half of 7), then the 4 that are left.
    assert in_stratum == [4, 3, 2]
    assert not mask[18:].any()


def test_ccs_has_fifty_strata():
    # One sample in each of 49 strata and a hundred in the lowest: of 60 kept, 49 are those, and 11 of the many.
    score = [0.0] * 100 + [(stratum + 0.5) / 50 for stratum in range(1, 49)] + [1.0]
    mask = baselines.ccs(plain(score), 60, 0, tail=0.0)
    assert (mask[:100].sum(), mask[100:].sum()) == (11, 49)


def test_ccs_cuts_less_where_the_budget_would_not_be_met():
    assert baselines.ccs(plain(np.arange(10.0)), 9, 0, tail=0.5).sum() == 9


def test_ccs_cuts_what_its_authors_cut():
    score = np.arange(1000.0)
    for budget, hardest in ((100, 699), (110, 899), (300, 899), (310, 999), (500, 999)):
        keeps = [kept(baselines.ccs(plain(score), budget, seed))[-1] for seed in range(30)]
        assert max(keeps) <= hardest
        assert max(keeps) > hardest - 20  # up to the edge of what was cut


def test_ccs_cuts_by_the_fraction_that_was_meant():
    # Of 1,376 a tenth is 138, a little more than a tenth; and of classes of other sizes each has its own rounding.
    score = np.arange(1376.0)
    for budget, hardest in ((138, 963), (413, 1238), (414, 1375)):
        keeps = [kept(baselines.ccs(plain(score), budget, seed))[-1] for seed in range(30)]
        assert hardest - 30 < max(keeps) <= hardest
    label = np.repeat(np.arange(4), [444, 455, 465, 476])
    level = np.concatenate([(np.arange(size) + 0.5) / size for size in np.bincount(label)])
    most = np.zeros(4)
    for seed in range(30):
        mask = baselines.ccs_per_class(plain(level, label=label), 184, seed)
        assert mask.sum() == 184
        most = np.maximum(most, [level[mask & (label == each)].max() for each in range(4)])
    assert (most < 0.701).all() and (most > 0.66).all()


def test_moderate_by_hand():
    # One class on a line; its mean is 0, distances are 5, 1, 0, 1, 2, 3: the median is 1.5.
    embedding = np.array([[-5.0], [1.0], [0.0], [-1.0], [2.0], [3.0]])
    given_samples = Samples(ids=np.arange(6), label=np.zeros(6, int), embedding=embedding)
    assert kept(baselines.moderate(given_samples, 3, 0)) == [1, 3, 4]
    # Distances 10, 1, 2, 3, 4: their median is 3, their mean 4.
    given_samples = Samples(ids=np.arange(5), label=np.zeros(5, int), embedding=np.array([[-10.0], [1], [2], [3], [4]]))
    assert kept(baselines.moderate(given_samples, 1, 0)) == [3]


def test_moderate_has_a_mean_and_a_median_for_each_class():
    line = np.array([[-5.0], [1.0], [0.0], [-1.0], [2.0], [3.0]])  # as above; the other class is wider and elsewhere
    given_samples = Samples(
        ids=np.arange(12), label=np.repeat([0, 1], 6), embedding=np.concatenate([line, 1000 + 40 * line])
    )
    assert kept(baselines.moderate(given_samples, 6, 0)) == [1, 3, 4, 7, 9, 10]


def test_moderate_needs_embeddings():
    with pytest.raises(ValueError, match="embeddings"):
        baselines.moderate(plain([1.0]), 1, 0)


def test_dual_draws_as_its_density_says():
    # Three kinds of samples of one DUAL score; the ten anchors have a mean of 0.5, half is pruned, c = 1:
    # b = 15 x 0.5 x 0.5 = 3.75, a = 12.25.
    mean = np.array([0.3] * 5 + [0.7] * 5 + [0.9] * 40 + [0.7] * 40)
    score = np.concatenate([np.linspace(1.0, 0.91, 10), np.full(80, 0.5)])
    given_samples = Samples(ids=np.arange(90), label=np.zeros(90, int), scores={"dual": score, "mean_p": mean})
    a, b = 12.25, 3.75
    density = mean ** (a - 1) * (1 - mean) ** (b - 1) * score
    first = np.zeros(90)
    for seed in range(3000):
        first += baselines.dual(given_samples, 1, seed, exponent=np.log(0.5) / np.log(89 / 90))
    # With one to keep the chances are the density itself; here r^c is 0.5 again.
    expected = 3000 * np.array([part.sum() for part in np.split(density / density.sum(), [10, 50])])
    found = np.array([part.sum() for part in np.split(first, [10, 50])])
    assert (abs(found - expected) < 5 * np.sqrt(expected) + 1).all()


def test_dual_draws_in_the_order_of_its_density(monkeypatch):
    # The weights themselves, of which the draws above show little: b = 15 (1 - 0.75)(1 - 0.7^2), a = 16 - b. The mean
    # is of the ten highest: it would be 0.8 of nine.
    weights = []
    draw = baselines.weighted_draw
    monkeypatch.setattr(baselines, "weighted_draw", lambda weight, *rest: weights.append(weight) or draw(weight, *rest))
    rng = np.random.default_rng(0)
    mean = np.concatenate([np.full(9, 0.8), [0.3], rng.uniform(0.2, 0.99, 90)])
    score = np.append(np.linspace(3, 2, 10), rng.random(90))
    given_samples = Samples(ids=np.arange(100), label=np.zeros(100, int), scores={"dual": score, "mean_p": mean})
    assert baselines.dual(given_samples, 30, 0, exponent=2.0).sum() == 30
    b = 15 * 0.25 * (1 - 0.7**2)
    expected = (15 - b) * np.log(mean) + (b - 1) * np.log(1 - mean) + np.log(score)
    found = np.log(weights[0])
    np.testing.assert_allclose(found - found[0], expected - expected[0], rtol=1e-9, atol=1e-9)


def test_dual_has_its_authors_exponent():
    given_samples = samples(2000)
    np.testing.assert_array_equal(
        baselines.dual(given_samples, 600, 0), baselines.dual(given_samples, 600, 0, exponent=4.0)
    )


def test_dual_prefers_easier_samples_when_more_is_pruned():
    given_samples = samples(2000)
    mean_of_kept = [
        given_samples.scores["mean_p"][baselines.dual(given_samples, budget, 0)].mean() for budget in (100, 600)
    ]
    assert mean_of_kept == sorted(mean_of_kept, reverse=True)


def test_per_class_keeps_shares():
    given_samples = samples(400, 3)
    sizes = np.bincount(given_samples.label)
    mask = baselines.per_class(baselines.hardest_first)(given_samples, 100, 0)
    np.testing.assert_allclose(np.bincount(given_samples.label[mask]), sizes / 4, atol=1)


@pytest.mark.parametrize("name", ["ccs", "dual", "forgetting", "razor"])
def test_a_score_that_was_not_computed_is_named(name):
    with pytest.raises(ValueError, match="there is no score"):
        METHODS[name](Samples(ids=np.arange(3), label=np.zeros(3, int)), 1, 0)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        baselines.hardest_first(plain([1.0, np.nan]), 1, 0)
    given_samples = samples()
    given_samples.scores["mean_p"][7] = np.nan
    with pytest.raises(ValueError, match="mean_p: 1 of 300 scores are NaN"):
        baselines.dual(given_samples, 100, 0)


def test_arrays_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="el2n"):
        Samples(ids=np.arange(3), label=np.zeros(3, int), scores={"el2n": np.zeros(2)})
