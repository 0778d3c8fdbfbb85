"""gamma-Razor in one call: what it looks at, and that classes are weighed over rounds."""

import math
from dataclasses import replace

import numpy as np
import pytest

from razor_ray import weights
from razor_ray.config import SampleConfig, WeighConfig
from razor_ray.selection import Samples, gamma_razor
from razor_ray.window import Levels, from_zero


@pytest.fixture(scope="module")
def samples() -> Samples:
    """Three classes of 300, the third much harder than the others, as a proxy of several epochs and of one saw them."""
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1, 2], 300)
    p = rng.beta(np.repeat([9, 8, 2], 300), 2)
    scores = {"loss": -np.log(p), "el2n": 1.2 * (1 - p), "margin": 1 - 2 * p, "correct": p > 0.5}
    return Samples(
        ids=rng.permutation(900), label=label, scores=scores, embedding=rng.normal(size=(900, 4)).astype(np.float32)
    )


def with_scores(samples: Samples, **scores) -> Samples:
    return Samples(ids=samples.ids, label=samples.label, scores=samples.scores | scores, embedding=samples.embedding)


def quotas(keep, samples) -> list[int]:
    return np.bincount(samples.label[keep], minlength=3).tolist()


def test_what_the_proxy_contradicted_over_all_epochs_decides_the_window(samples):
    never = with_scores(samples, aum=np.full(900, -1.0))  # another class was never ahead, whatever one pass says
    often = with_scores(samples, aum=np.where(np.arange(900) % 2, 1.0, -1.0))  # in a half of all
    for given, budget, trained_for, focus, gamma in (
        (never, 90, "epochs", 0.7, 0.0),
        (often, 90, "epochs", math.exp(-1.4 * 0.9), 7.0),
        (often, 225, "epochs", math.exp(-1.4 * 0.75), 2.8),
        (often, 225, "steps", math.exp(-1.4 * (1 - 0.25**0.2)), 0.7 * 10 / 3 / 0.25),
    ):
        for_so_long, set_so = SampleConfig(trained_for=trained_for), SampleConfig(focus=focus, gamma=gamma)
        found = gamma_razor(given, budget, 0, sample=for_so_long)
        weigh = WeighConfig(beta=1 - {"epochs": 1, "steps": 10 / 3}[trained_for] * 3 / 900)
        np.testing.assert_array_equal(found, gamma_razor(samples, budget, 0, weigh=weigh, sample=set_so))
    assert not np.array_equal(gamma_razor(never, 90, 0), gamma_razor(often, 90, 0))


def test_what_looks_like_wrong_labels_is_left_out(samples):
    # A fifth of the first class is contradicted with confidence; a focus at the top would keep these above all.
    wrong = np.zeros(900, bool)
    wrong[np.flatnonzero(samples.label == 0)[:60]] = True
    mislabelled = with_scores(
        samples,
        loss=np.where(wrong, 4.0, samples.column("loss")),
        el2n=np.where(wrong, 1.38, np.minimum(samples.column("el2n"), 1.3)),
        margin=np.where(wrong, 0.96, samples.column("margin")),
    )
    hardest = SampleConfig(focus=1.0, gamma=20.0)
    keep = gamma_razor(mislabelled, 400, 0, sample=hardest)
    assert keep.sum() == 400 and not keep[wrong].any()
    unguarded = gamma_razor(mislabelled, 400, 0, sample=replace(hardest, tail=0.0))
    assert unguarded[wrong].mean() > 0.7


def test_levels_of_a_margin_are_as_fine_where_the_proxy_is_sure(samples):
    # Half of all margins lie within a thousandth of -1, where floats are coarse, the same as a score that begins at 0.
    of_zero = np.where(np.arange(900) % 2, 1e-3, 1.0) * samples.column("el2n")
    sure = with_scores(samples, el2n=of_zero, margin=(of_zero - 1).astype(np.float32))
    choice = SampleConfig(focus=0.3, gamma=7.0, tail=0.0)
    kept = [gamma_razor(replace(sure, hardness=name), 90, 0, sample=choice) for name in ("margin", "el2n")]
    np.testing.assert_array_equal(*kept)
    coarse = Levels.counted(sure.column("margin")).count.max()
    fine = Levels.counted(from_zero(sure.column("margin"), "margin")).count.max()
    assert coarse > 100 and fine <= 2


def test_a_threshold_of_nothing_is_no_default(samples):
    with pytest.raises(ValueError, match="threshold"):
        gamma_razor(samples, 90, 0, threshold=0.0)


def test_levels_are_of_all_classes(samples):
    # The third class is much harder: around one level of all samples its easiest are kept, and the others' hardest.
    sharp = SampleConfig(focus=0.6, gamma=100.0, tail=0.0)
    hardness, keep = samples.column("el2n"), gamma_razor(samples, 90, 0, sample=sharp)
    level = {label: hardness[keep & (samples.label == label)].mean() for label in range(3)}
    median = {label: np.median(hardness[samples.label == label]) for label in range(3)}
    assert level[0] > median[0] and level[1] > median[1] and level[2] < median[2]
    assert max(level.values()) - min(level.values()) < 0.1 < (median[2] - median[0]) / 2


def test_threshold_and_earlier_rounds_decide_the_quotas(samples):
    loss = samples.column("loss")
    same = gamma_razor(samples, 90, 0, threshold=weights.loss_quantile(loss, 0.7))
    np.testing.assert_array_equal(same, gamma_razor(samples, 90, 0))
    lower = gamma_razor(samples, 90, 0, threshold=0.05)
    assert quotas(lower, samples) != quotas(same, samples)
    # By hand: the mean of the counts of two rounds.
    ispl = weights.IsplSettings.of(WeighConfig(), 0.05)
    now = np.array([ispl.weigh(loss[samples.label == label]).sum() for label in range(3)])
    earlier = {0: 10.0, 1: 250.0, 2: 40.0}
    shares = weights.class_shares(
        num_samples=np.full(3, 300),
        effective_count=(now + np.array([*earlier.values()])) / 2,
        recall=np.ones(3),
        budget=90,
        config=WeighConfig(),
    )
    found = gamma_razor(samples, 90, 0, threshold=0.05, earlier=[earlier])
    assert quotas(found, samples) == shares.quota.tolist() != quotas(lower, samples)
