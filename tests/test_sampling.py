"""Sampling inside one class: hand-worked classes, then laws over seeded random layouts."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from razor_ray.config import SampleConfig
from razor_ray.sampling import (
    CLASS_FLOOR,
    CLUSTER,
    HARD,
    NOISE,
    NOT_CLUSTERED,
    OVER_QUOTA,
    REASONS,
    ClassSample,
    draw_keys,
    estimate_wrong_labels,
    sample_class,
    soften,
    weighted_draw,
)
from razor_ray.window import Levels, Window

PLAIN = SampleConfig(clustering="none", tail=0.0)


def sample(hardness, quota, config=PLAIN, embedding=None, ids=None, **kwargs) -> ClassSample:
    """`sample_class` with the arguments that a test does not care about; all weights are the same, unless given."""
    hardness = np.asarray(hardness, np.float32)
    ids = np.arange(len(hardness)) if ids is None else ids
    even = np.zeros(len(hardness))
    arguments = {"seed": 0, "label": 0, "log_weight": even, "wrong_label_fraction": 0.0} | kwargs
    return sample_class(hardness=hardness, embedding=embedding, ids=ids, quota=quota, settings=config, **arguments)


def easy_class(num_samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Hardness (n,) as EL2N has it, most of it near 0, and embeddings (n, 16) in eight directions."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(8, 16))
    embedding = centres[rng.integers(0, 8, num_samples)] + 0.5 * rng.normal(size=(num_samples, 16))
    return (rng.beta(0.6, 2.0, num_samples) * 1.41).astype(np.float32), embedding.astype(np.float16)


def assert_same(one: ClassSample, other: ClassSample) -> None:
    for name in ("keep", "cluster", "rank", "reason"):
        assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


# --- the draw ---------------------------------------------------------------------------------------------------------


def test_keys_are_exponential():
    keys = draw_keys(np.arange(100_000), seed=1)
    assert stats.kstest(keys, "expon").pvalue > 0.01
    assert keys.min() > 0 and keys.max() <= 36.8


@pytest.mark.parametrize("step", [1, 1 << 20, 1 << 32, 1 << 53, 1 << 63])
def test_keys_of_neighbouring_ids_are_unrelated(step):
    ids = np.arange(50_000, dtype=np.uint64)
    keys, neighbours = draw_keys(ids, seed=0), draw_keys(ids + np.uint64(step), seed=0)
    assert abs(stats.pearsonr(keys, neighbours).statistic) < 4 / np.sqrt(len(ids))
    if step > len(ids):
        assert not np.intersect1d(keys, neighbours).size


@pytest.mark.parametrize("seed", [1, 2, 1 << 32, (1 << 63) - 1])
def test_keys_of_another_seed_are_independent(seed):
    ids = np.arange(50_000)
    keys, others = draw_keys(ids, seed=0), draw_keys(ids, seed=seed)
    assert abs(stats.spearmanr(keys, others).statistic) < 4 / np.sqrt(len(ids))
    assert not np.intersect1d(keys, others).size  # nor are they the same keys at other ids


def test_keys_belong_to_ids():
    ids = np.random.default_rng(0).integers(0, 2**63, 1000)
    order = np.random.default_rng(1).permutation(1000)
    assert_array_equal(draw_keys(ids[order], 5), draw_keys(ids, 5)[order])
    assert_array_equal(draw_keys(ids[17:18], 5), draw_keys(ids, 5)[17:18])


def test_keys_refuse_floats():
    with pytest.raises(ValueError, match="2\\^53"):
        draw_keys(np.array([1.0, 2.0]), 0)  # pyright: ignore[reportArgumentType]


def test_draw_by_hand():
    # keys / weight: 2, 0.5, 1; weight 0 after them, by key: row 4 before row 3.
    weight, keys = np.array([1.0, 4.0, 2.0, 0.0, 0.0]), np.array([2.0, 2.0, 2.0, 0.2, 0.1])
    assert_array_equal(weighted_draw(weight, keys, 5, np.arange(5)), [1, 2, 0, 4, 3])
    assert_array_equal(weighted_draw(weight, keys, 2, np.arange(5)), [1, 2])


def test_draw_breaks_ties_by_the_tie_breaker():
    assert_array_equal(weighted_draw(np.ones(3), np.ones(3), 3, np.array([30, 10, 20])), [1, 2, 0])


def test_draw_follows_successive_sampling():
    # Two of three with weights 1, 2, 3. Row 0 is in with chance 1/6 + 2/6 * 1/4 + 3/6 * 1/3 = 5/12,
    # row 1 with 2/6 + 1/6 * 2/5 + 3/6 * 2/3 = 11/15, row 2 with 2 - 5/12 - 11/15 = 17/20.
    weight, ids, count = np.array([1.0, 2.0, 3.0]), np.arange(3), np.zeros(3)
    for seed in range(6000):
        count[weighted_draw(weight, draw_keys(ids, seed), 2, ids)] += 1
    assert_allclose(count / 6000, [5 / 12, 11 / 15, 17 / 20], atol=0.025)  # 4 standard errors


@pytest.mark.parametrize(
    ("weight", "count", "match"),
    [
        ([1.0, -1.0], 1, "weights must be finite and at least 0"),
        ([1.0, np.nan], 1, "weights must be finite and at least 0"),
        ([1.0, 1.0], 3, r"count must be in 0\.\.2"),
        ([1.0, 1.0], -1, r"count must be in 0\.\.2"),
        ([1.0], 1, "one row per sample"),
    ],
)
def test_draw_refuses(weight, count, match):
    with pytest.raises(ValueError, match=match):
        weighted_draw(np.array(weight), np.ones(2), count, np.arange(2))


# --- the tail ---------------------------------------------------------------------------------------------------------


def test_wrong_labels_by_hand():
    # p of the label 0.9, 0.8, 0.7, 0.1, 0.4 of the best other class 0.05, 0.1, 0.2, 0.85, 0.5.
    # Those that are agreed with have 0.8 on average. Only the fourth is contradicted with at least that; the fifth is
    # wrong too, but not with confidence.
    p_label, p_other = np.array([0.9, 0.8, 0.7, 0.1, 0.4]), np.array([0.05, 0.1, 0.2, 0.85, 0.5])
    assert estimate_wrong_labels(-np.log(p_label), p_other - p_label) == 1 / 5


def test_wrong_labels_are_judged_by_a_mean():
    # It agrees with four, by 0.95 three times and 0.40: 0.8125 on average. One it contradicts by 0.85.
    p_label = np.array([0.95, 0.95, 0.95, 0.40, 0.10])
    margin = np.array([-0.9, -0.9, -0.9, -0.1, 0.75])
    assert estimate_wrong_labels(-np.log(p_label), margin) == pytest.approx(0.2)
    margin[4] = 0.70  # by 0.80, of which it is not sure enough
    assert estimate_wrong_labels(-np.log(p_label), margin) == 0.0


def test_wrong_labels_of_a_proxy_that_knows_nothing():
    # Ten classes, all samples alike: 0.05 for the label, 0.1 for another: nothing is said with confidence.
    assert estimate_wrong_labels(np.full(8, -np.log(0.05)), np.full(8, 0.05)) == 0.0
    # 0.05 for the label, 0.9 for another: all are contradicted, half is the most.
    assert estimate_wrong_labels(np.full(8, -np.log(0.05)), np.full(8, 0.85)) == 0.5
    assert estimate_wrong_labels(np.full(8, np.log(10)), np.zeros(8)) == 0.0  # uniform: nothing is contradicted
    assert estimate_wrong_labels(np.zeros(0), np.zeros(0)) == 0.0


def test_wrong_labels_finds_flipped_labels():
    rng = np.random.default_rng(0)
    p_label = np.where(rng.random(2000) < 0.1, rng.beta(1, 15, 2000), rng.beta(15, 2, 2000))
    share = estimate_wrong_labels(-np.log(p_label), 0.95 * (1 - p_label) - p_label)
    assert 0.06 <= share <= 0.1  # a share is missed, by asking for confidence; none is invented


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_wrong_labels_do_not_depend_on_order(seed, num_samples):
    rng = np.random.default_rng(seed)
    loss = rng.exponential(size=num_samples)
    # Other classes have just the mean of the agreed, within rounding: one bit in the sum changes the count.
    p_label = np.exp(-loss)
    agreed = p_label > 0.6
    margin = np.where(agreed, -0.1, (p_label[agreed].mean() if agreed.any() else 0.7) - p_label)
    order = rng.permutation(num_samples)
    assert estimate_wrong_labels(loss[order], margin[order]) == estimate_wrong_labels(loss, margin)


@pytest.mark.parametrize(
    ("loss", "match"),
    [([-0.1, 1.0], "loss is a cross-entropy"), ([np.nan, 1.0], "1 of 2 scores"), ([1.0], "one row per sample")],
)
def test_wrong_labels_refuses(loss, match):
    with pytest.raises(ValueError, match=match):
        estimate_wrong_labels(np.array(loss), np.zeros(2))


def test_tail_is_the_hardest():
    # 30 % of ten: the three hardest go, and the rest is easier than all of them.
    hardness = np.array([5, 1, 9, 3, 7, 0, 8, 2, 6, 4])
    result = sample(hardness, 5, SampleConfig(clustering="none", tail=0.3))
    assert_array_equal(np.sort(hardness[result.reason == NOISE]), [7, 8, 9])
    assert_array_equal(result.rank[[4, 6, 2]], [8, 9, 10])  # by hardness, ascending
    assert not result.keep[result.reason == NOISE].any()


def test_tail_means_the_number_that_was_written():
    # 0.29 * 100 is 28.999999999999996 in binary.
    result = sample(np.arange(100), 10, SampleConfig(clustering="none", tail=0.29))
    assert np.count_nonzero(result.reason == NOISE) == 29


def test_tail_gives_way_to_the_quota():
    # Half of ten would leave five for a quota of eight: only the two hardest stay out, and the other eight are kept.
    result = sample(np.arange(10), 8, SampleConfig(clustering="none", tail=0.5))
    assert_array_equal(result.keep, np.arange(10) < 8)
    assert_array_equal(result.reason, [CLUSTER] * 4 + [HARD] * 4 + [NOISE] * 2)


@pytest.mark.parametrize(("tail", "num_noise"), [("auto", 40), (0.2, 20), (0.0, 0)])
def test_tail_auto_is_the_share_of_wrong_labels(tail, num_noise):
    result = sample(np.arange(100), 10, SampleConfig(clustering="none", tail=tail), wrong_label_fraction=0.4)
    assert np.count_nonzero(result.reason == NOISE) == num_noise


def test_ties_at_the_tails_edge_are_drawn_by_the_seed():
    # Eight of the ten are equally hard, and five go: each of the eight about as often as another, whatever its id.
    hardness, count = np.repeat([0.0, 1.0], [2, 8]), np.zeros(10)
    for seed in range(400):
        count += sample(hardness, 1, SampleConfig(clustering="none", tail=0.5), seed=seed).reason == NOISE
    assert_array_equal(count[:2], 0)
    assert_allclose(count[2:] / 400, 5 / 8, atol=0.1)  # 4 standard errors


def test_ties_at_the_tails_edge_do_not_bias_the_draw():
    # Half of the class is equally hard and half of that half goes to the tail. Were it chosen by the keys of the draw,
    # those left would have small keys, and more than half of the kept would be hard.
    hardness = np.repeat([0.0, 1.0], 2000)
    config = SampleConfig(clustering="none", tail=0.25)
    num_hard = [hardness[sample(hardness, 600, config, seed=seed).keep].sum() for seed in range(20)]
    assert_allclose(np.mean(num_hard), 200, atol=12)  # a third of 600; 4 standard errors


# --- a class ----------------------------------------------------------------------------------------------------------


def test_class_by_hand():
    # Thirty samples in three clusters of ten, all of one hardness in each, none in the tail. Weights are even: nine
    # samples are three of each.
    hardness, embedding = np.repeat([0.9, 0.1, 0.5], 10), np.repeat(np.eye(3, dtype=np.float16), 10, axis=0)
    result = sample(hardness, 9, SampleConfig(num_clusters=3, tail=0.0), embedding)
    assert_array_equal(result.cluster, np.repeat([2, 0, 1], 10))
    assert_array_equal(np.bincount(result.cluster[result.keep]), [3, 3, 3])
    # The median is 0.5, so only the first direction is hard.
    expected = np.where(result.keep, np.repeat([HARD, CLUSTER, CLUSTER], 10), OVER_QUOTA)
    assert_array_equal(result.reason, expected)
    assert_array_equal(np.sort(result.rank), np.arange(1, 31))
    assert_array_equal(result.keep, result.rank <= 9)


def test_weights_by_hand():
    # 16 samples, twelve of weight 1/12, two of 1/2 and two of 1, whatever they are multiplied by. Even weights would
    # keep 4 * 12 / 16 of the first; with these, summing over the orders of successive draws, it is 1.353 of 4.
    weight = np.array([1 / 12] * 12 + [1 / 2] * 2 + [1.0] * 2)
    for log_weight, num_first in [(np.zeros(16), 3.0), (np.log(weight), 1.353), (np.log(weight) - 1e4, 1.353)]:
        found = [sample(np.arange(16), 4, log_weight=log_weight, seed=seed).keep[:12].sum() for seed in range(300)]
        assert_allclose(np.mean(found), num_first, atol=0.2)  # 4 standard errors


@pytest.mark.parametrize("clustering", ["kmeans", "none"])
def test_weights_far_beyond_floats_still_decide(clustering):
    # e^-5000 is 0 as a float, and e^5000 infinite. A hundred of the one weight are enough to choose fifty from.
    embedding = np.tile(np.eye(3, dtype=np.float16), (100, 1))
    config = SampleConfig(clustering=clustering, num_clusters=3, tail=0.0)
    for shift in (0.0, 5000.0):
        log_weight = np.repeat([0.0, -5000.0, -10000.0], 100) + shift
        keep = sample(np.arange(300), 50, config, embedding, log_weight=log_weight).keep
        assert [keep[:100].sum(), keep[100:200].sum(), keep[200:].sum()] == [50, 0, 0]


def test_soften_by_hand():
    # Ten of weight 1 and ninety of e^-100, of which ten are to be kept: worth fifteen at weights of which the ninety
    # have x with (10 + 90 x)^2 / (10 + 90 x^2) = 15, so that x is 0.025365.
    log_weight = np.repeat([3.0, -97.0], [10, 90])
    found = np.exp(soften(log_weight, 10))
    assert_array_equal(found[:10], np.ones(10))
    assert_allclose(found[10:], 0.025365, rtol=2e-3)
    # Of six the ten are enough, 9 < 10; of eighty half of what is beyond them must be in reach, as much as ninety.
    assert_array_equal(soften(log_weight, 6), log_weight - 3.0)
    weight = np.exp(soften(log_weight, 80))
    assert weight.sum() ** 2 / np.square(weight).sum() == pytest.approx(90, rel=1e-3)
    assert_array_equal(soften(log_weight, 100), np.zeros(100))  # all are kept: a choice between nothing


@given(st.integers(0, 2**32), st.integers(1, 300), st.floats(0, 1), st.sampled_from([0.0, 1.0, 30.0, 1e5, 1e300]))
def test_soften_leaves_a_choice(seed, num_samples, keep_fraction, spread):
    log_weight = -spread * np.random.default_rng(seed).random(num_samples) ** 2
    quota = round(keep_fraction * num_samples)
    found = soften(log_weight, quota)
    weight, given = np.exp(found), log_weight - log_weight.max()
    assert weight.max() == 1
    assert weight.sum() ** 2 / np.square(weight).sum() >= 0.999 * min(1.5 * quota, (num_samples + quota) / 2)
    assert (np.diff(found[np.argsort(given)]) >= 0).all()
    assert (found >= given).all()
    power = found[given < 0] / given[given < 0]
    assert_allclose(power, power[0] if len(power) else 1)  # one power for all


@pytest.mark.parametrize("quota", [-1, 4])
def test_soften_refuses(quota):
    with pytest.raises(ValueError, match=r"quota must be in 0\.\.3"):
        soften(np.zeros(3), quota)


def test_a_class_far_from_the_focus_is_covered_all_the_same():
    # A class that is much harder than the others, at a hundredth: without softening one sample had nearly all weight,
    # four clusters of sixteen had some of the quota, and every seed chose much the same.
    rng = np.random.default_rng(0)
    others, hardness = rng.normal(size=45_000), rng.normal(3.0, 1.0, 5_000)
    level = Levels.counted(np.concatenate([others, hardness])).of(hardness)
    log_weight = Window.of(SampleConfig(), 0.01, 0.2).log_weights(level)
    embedding = rng.normal(size=(5_000, 8)).astype(np.float16)
    kept = []
    for seed in range(2):
        result = sample(hardness, 50, SampleConfig(tail=0.0), embedding, log_weight=log_weight, seed=seed)
        of_cluster = np.bincount(result.cluster[result.keep], minlength=16)
        assert np.count_nonzero(of_cluster) >= 12 and of_cluster.max() <= 15
        kept.append(result.keep)
    assert (kept[0] & kept[1]).sum() < 35
    assert np.median(hardness[kept[0]]) < np.quantile(hardness, 0.1)  # and it is the easy ones, as the window says


def test_clusters_share_the_quota_by_their_weights():
    # Two clusters of fifty, one of three times the weight of the other in sum: of a quota of twenty 15 and 5. The tail
    # is of no cluster, whatever it weighs.
    embedding = np.repeat(np.eye(3, dtype=np.float16), [50, 50, 10], axis=0)
    hardness, log_weight = np.repeat([0.1, 0.2, 0.9], [50, 50, 10]), np.repeat([np.log(3.0), 0.0, 1e4], [50, 50, 10])
    result = sample(hardness, 20, SampleConfig(num_clusters=2, tail=10 / 110), embedding, log_weight=log_weight)
    assert_array_equal(np.bincount(result.cluster[result.keep]), [15, 5])
    assert not result.keep[100:].any()


def test_a_small_quota_has_few_clusters():
    # Of twenty clusters most would get nothing of a quota of six, and the same ones whatever the seed.
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(400, 8)).astype(np.float32)
    for quota, most in ((2, 1), (6, 2), (59, 19), (60, 20), (200, 20)):
        found = sample_class(
            hardness=rng.random(400),
            embedding=embedding,
            ids=np.arange(400),
            quota=quota,
            seed=0,
            label=0,
            log_weight=np.zeros(400),
            wrong_label_fraction=0.0,
            settings=SampleConfig(tail=0.0),
        )
        assert found.cluster.max() + 1 == most
        assert found.keep.sum() == quota


def test_floor_bound_is_the_reason():
    result = sample(np.arange(10), 2, floor_bound=True)
    assert_array_equal(result.reason[result.keep], [CLASS_FLOOR] * 2)
    assert REASONS[CLASS_FLOOR] == "class_floor" and REASONS[NOISE] == "noise" and len(REASONS) == 5


def test_class_that_is_kept_whole():
    hardness, embedding = easy_class(40)
    result = sample(hardness, 40, SampleConfig(), embedding)
    assert result.keep.all()
    assert_array_equal(result.cluster, np.full(40, NOT_CLUSTERED))
    assert_array_equal(np.sort(result.rank), np.arange(1, 41))
    assert np.count_nonzero(result.reason == HARD) == 20 == np.count_nonzero(result.reason == CLUSTER)


def test_class_that_is_dropped_whole():
    hardness, embedding = easy_class(40)
    result = sample(hardness, 0, SampleConfig(), embedding)
    assert not result.keep.any()
    assert_array_equal(result.reason, np.full(40, OVER_QUOTA))  # the quota dropped them, not their hardness


def test_empty_class_and_class_of_one():
    empty = sample(np.zeros(0), 0, SampleConfig(), np.zeros((0, 4), np.float16))
    assert [len(column) for column in (empty.keep, empty.cluster, empty.rank, empty.reason)] == [0] * 4
    for quota in (0, 1):
        one = sample([0.7], quota, SampleConfig(), np.ones((1, 4), np.float16))
        assert_array_equal(one.keep, [quota == 1])
        assert_array_equal(one.rank, [1])


def test_equal_hardness_is_a_uniform_draw():
    count = np.zeros(20)
    for seed in range(1000):
        result = sample(np.full(20, 0.4), 5, SampleConfig(clustering="none"), seed=seed, wrong_label_fraction=0.3)
        assert not (result.reason == NOISE).any()
        count += result.keep
    assert stats.chisquare(count).pvalue > 0.001


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"hardness": np.array([0.0, np.nan, 1.0])}, "class 3: 1 of 3 scores are NaN"),
        ({"quota": 4}, "class 3 has 3 samples"),
        ({"quota": -1}, "quota"),
        ({"ids": np.array([5, 9, 5])}, "id 5 occurs more than once"),
        ({"ids": np.array([1.0, 2.0, 3.0])}, "integers"),
        ({"ids": np.arange(2)}, "one row per sample"),
        ({"seed": -1}, "seed"),
        ({"wrong_label_fraction": np.nan}, "wrong_label_fraction"),
        ({"log_weight": np.array([0.0, -np.inf, 0.0])}, "class 3: 1 of 3 scores are NaN or infinite"),
        ({"log_weight": np.zeros(2)}, "one row per sample"),
        ({"settings": SampleConfig()}, "needs embeddings"),
    ],
)
def test_class_refuses(change, match):
    arguments = {
        "hardness": np.arange(3.0), "embedding": None, "ids": np.arange(3), "quota": 1, "seed": 0, "label": 3,
        "log_weight": np.zeros(3), "wrong_label_fraction": 0.0, "settings": PLAIN,
    }  # fmt: skip
    with pytest.raises(ValueError, match=match):
        sample_class(**arguments | change)


# --- laws -------------------------------------------------------------------------------------------------------------


@st.composite
def classes(draw):
    """A class of up to 120 samples with ties, repeated and zero embeddings, large ids, and settings for it."""
    num_samples = draw(st.integers(0, 120))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    hardness = rng.exponential(size=num_samples)
    if draw(st.booleans()):
        hardness = np.round(hardness, draw(st.integers(0, 1)))
    embedding = rng.normal(size=(num_samples, 3))
    if draw(st.booleans()):
        embedding = np.round(embedding)
    ids = rng.choice(2**20, num_samples, replace=False).astype(np.uint64) << np.uint64(
        draw(st.sampled_from([0, 32, 43]))
    )
    return {
        "hardness": hardness.astype(np.float32),
        "embedding": embedding.astype(draw(st.sampled_from([np.float16, np.float32]))),
        "ids": ids,
        "quota": draw(st.integers(0, num_samples)),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "label": draw(st.integers(0, 999)),
        "log_weight": -draw(st.sampled_from([0.0, 1.0, 1e4])) * rng.random(num_samples),
        "wrong_label_fraction": draw(st.sampled_from([0.0, 0.05, 0.5])),
        "floor_bound": draw(st.booleans()),
        "settings": SampleConfig(
            clustering=draw(st.sampled_from(["kmeans", "kmeans", "mean_shift", "none"])),
            num_clusters=draw(st.integers(1, 12)),
            tail=draw(st.sampled_from(["auto", 0.0, 0.3, 0.9])),
        ),
    }


@settings(deadline=None, derandomize=True, max_examples=150)
@given(classes())
def test_laws_of_a_class(given_class):
    result = sample_class(**given_class)
    num_samples, quota, hardness = len(given_class["ids"]), given_class["quota"], given_class["hardness"]
    noise = result.reason == NOISE
    assert result.keep.sum() == quota
    assert_array_equal(np.sort(result.rank), np.arange(1, num_samples + 1))
    assert_array_equal(result.keep, result.rank <= quota)
    assert_array_equal(result.keep, result.reason <= CLASS_FLOOR)
    assert (result.keep.dtype, result.cluster.dtype, result.rank.dtype, result.reason.dtype) == (
        np.dtype(bool), np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.int8),
    )  # fmt: skip
    # The tail: harder than the rest, ranked last and by hardness, in no cluster, and never in the way of the quota.
    if noise.any():
        assert hardness[noise].min() >= hardness[~noise].max()
        assert result.rank[noise].min() > result.rank[~noise].max()
        assert (np.diff(hardness[noise][np.argsort(result.rank[noise])]) >= 0).all()
        assert (result.cluster[noise] == NOT_CLUSTERED).all()
        assert hardness.min() < hardness.max()
    assert num_samples - noise.sum() >= quota
    # Clusters: 0..K-1 without gaps, unless the class is kept or dropped whole.
    if 0 < quota < num_samples:
        assert_array_equal(np.unique(result.cluster[~noise]), np.arange(result.cluster.max() + 1))
    else:
        assert (result.cluster == NOT_CLUSTERED).all()


@settings(deadline=None, derandomize=True, max_examples=100)
@given(classes(), st.integers(0, 2**32))
def test_order_of_rows_does_not_matter(given_class, seed):
    order = np.random.default_rng(seed).permutation(len(given_class["ids"]))
    result = sample_class(**given_class)
    rows = {name: given_class[name][order] for name in ("hardness", "log_weight", "embedding", "ids")}
    shuffled = sample_class(**given_class | rows)
    expected = ClassSample(
        keep=result.keep[order], cluster=result.cluster[order], rank=result.rank[order], reason=result.reason[order]
    )
    assert_same(shuffled, expected)


def test_order_of_rows_does_not_matter_to_a_real_class():
    # Large enough for SIMD, threads and float sums to show a difference if rows were taken as they come.
    hardness, embedding = easy_class(1500)
    ids = np.random.default_rng(1).permutation(1500).astype(np.int64) + (7 << 32)
    result = sample(hardness, 450, SampleConfig(), embedding, ids)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(1500)
        shuffled = sample(hardness[order], 450, SampleConfig(), embedding[order], ids[order])
        assert_array_equal(shuffled.rank, result.rank[order])
        assert_array_equal(shuffled.cluster, result.cluster[order])


@settings(deadline=None, derandomize=True, max_examples=50)
@given(classes(), st.integers(0, 2**32))
def test_resharding_does_not_matter_to_ids_of_the_users_own(given_class, seed):
    # The same ids at other places: sample_id, the tie-breaker, is new, and so is the order.
    num_samples = len(given_class["ids"])
    order = np.random.default_rng(seed).permutation(num_samples)
    result = sample_class(**given_class, tie_break=np.arange(num_samples))
    rows = {name: given_class[name][order] for name in ("hardness", "log_weight", "embedding", "ids")}
    resharded = sample_class(**given_class | rows, tie_break=np.arange(num_samples) << 32)
    assert_array_equal(resharded.rank, result.rank[order])
    assert_array_equal(resharded.keep, result.keep[order])


def test_samples_of_one_id_are_told_apart_by_the_tie_breaker():
    ids, tie_break, order = np.full(12, 5), np.arange(12), np.random.default_rng(0).permutation(12)
    result = sample(np.zeros(12), 4, ids=ids, tie_break=tie_break)
    assert_array_equal(np.flatnonzero(result.keep), np.arange(4))
    shuffled = sample(np.zeros(12), 4, ids=ids, tie_break=tie_break[order])
    assert_array_equal(shuffled.rank, result.rank[order])


def test_another_seed_is_another_sample():
    hardness, embedding = easy_class(300)
    kept = [sample(hardness, 90, SampleConfig(), embedding, seed=seed).keep for seed in (0, 0, 1)]
    assert_array_equal(kept[0], kept[1])
    assert np.count_nonzero(kept[0] != kept[2]) > 40


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(0, 2**32), st.integers(100, 400), st.floats(0.05, 0.95), st.sampled_from([0.0, 1.0, 5.0]))
def test_every_cluster_with_a_share_is_covered(seed, num_samples, keep_fraction, spread):
    hardness, embedding = easy_class(num_samples, seed)
    quota = round(keep_fraction * num_samples)
    log_weight = -spread * hardness
    config = SampleConfig(tail=0.1, num_clusters=8)
    result = sample(hardness, quota, config, embedding, log_weight=log_weight)
    rest = result.reason != NOISE
    mass = np.bincount(result.cluster[rest], weights=np.exp(soften(log_weight[rest], quota)))
    share = quota * mass / mass.sum()
    num_kept = np.bincount(result.cluster[result.keep], minlength=len(mass))
    assert (num_kept[share >= 1] >= 1).all()
    uncapped = num_kept < np.bincount(result.cluster[rest])
    assert (num_kept[uncapped] >= np.floor(share[uncapped] * (1 - 1e-9))).all()  # what caps free goes to the others


@pytest.mark.parametrize("clustering", ["kmeans", "mean_shift", "none"])
def test_what_weighs_more_is_kept_more(clustering):
    # A quarter of a class weighs three times as much: half of what is kept is of it, up to chance and the draws without
    # replacement.
    hardness, embedding = easy_class(2000)
    heavy = np.random.default_rng(1).random(2000) < 0.25
    log_weight = np.log(np.where(heavy, 3.0, 1.0))
    config = SampleConfig(clustering=clustering, tail=0.0)
    kept = [heavy[sample(hardness, 100, config, embedding, log_weight=log_weight, seed=k).keep] for k in range(20)]
    assert_allclose(np.mean(kept), 0.49, atol=0.05)  # 4 standard errors


def test_even_weights_follow_the_data():
    hardness, embedding = easy_class(2000)
    result = sample(hardness, 400, SampleConfig(tail=0.0), embedding)
    assert stats.ks_2samp(hardness, hardness[result.keep]).pvalue > 0.05


def test_a_large_class_needs_no_square_of_its_size():
    num_samples = 200_000
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(num_samples, 16)).astype(np.float16)
    hardness = rng.beta(0.6, 2.0, num_samples).astype(np.float32)
    for clustering in ("kmeans", "mean_shift"):
        sample(hardness[:100], 10, SampleConfig(clustering=clustering), embedding[:100])  # import scikit-learn first
        tracemalloc.start()
        result = sample(hardness, 60_000, SampleConfig(clustering=clustering), embedding)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert result.keep.sum() == 60_000
        assert peak < 500 * num_samples  # bytes: a few columns and float32 copies, where n * n would take 160 GB
