"""What a comparison may say: figures by hand, and no winner where intervals overlap."""

from __future__ import annotations

import math

import numpy as np
import pytest

from razor_ray.comparison import (
    ALL,
    Estimate,
    Trial,
    break_even,
    estimate,
    level_with_best,
    markdown,
    pack,
    rank_stability,
    summarize,
    unpack,
    verdict,
)


def row(method, accuracy, seed=0, keep_fraction=0.1, budget="epochs", seconds=5.0, num_eval=100_000, right=None):
    """Of a network that is right of the first images, unless it is told of which."""
    right = np.arange(num_eval) < round(num_eval * accuracy) if right is None else right
    return {
        "method": method,
        "keep_fraction": keep_fraction,
        "budget": budget,
        "seed": seed,
        "accuracy": accuracy,
        "worst_recall": accuracy / 2,
        "macro_recall": 0.9 * accuracy,
        "seconds": seconds,
        "recall": [accuracy / 2, 1.3 * accuracy],
        "num_eval": len(right),
        "right": pack(right),
    }


def line(method, mean, error=0.01, num_seeds=3, shift=0):
    """A method of this mean and standard error; `shift` says which seed has the highest."""
    spread = np.linspace(-1, 1, num_seeds) if num_seeds > 1 else np.zeros(1)
    spread = np.roll(spread, shift) * (error / (np.std(spread, ddof=1) / math.sqrt(num_seeds)) if num_seeds > 1 else 0)
    (found,) = summarize(row(method, mean + value, seed) for seed, value in enumerate(spread))
    return found


def summarize_again(lines):
    """The best first, as `summarize` has them."""
    return sorted(lines, key=lambda one: -one.accuracy.mean)


def test_estimate_by_hand():
    # Deviations -0.02, 0, 0.02: variance 0.0004, standard error 0.02 / sqrt(3).
    found = estimate([0.50, 0.52, 0.54])
    assert found.mean == pytest.approx(0.52)
    assert found.error == pytest.approx(0.02 / math.sqrt(3))
    assert estimate([0.7]) == Estimate(0.7, math.inf, 1)


def test_summaries_group_and_sort():
    rows = [row("a", 0.5), row("b", 0.7), row("a", 0.7, seed=1), row("b", 0.9, seed=1, seconds=90.0)]
    rows.append(row("b", 0.8, seed=2, seconds=7.0))
    rows.append(row("a", 0.8, keep_fraction=0.3))
    lines = summarize(rows)
    assert [(found.keep_fraction, found.method) for found in lines] == [(0.1, "b"), (0.1, "a"), (0.3, "a")]
    assert lines[1].accuracy == Estimate(0.6, 0.1, 2)
    assert lines[1].worst_recall == Estimate(0.3, 0.05, 2)
    assert lines[1].macro_recall == Estimate(0.54, 0.09, 2)
    assert lines[0].seconds == 7.0  # the middle one


@pytest.mark.parametrize(
    ("lines", "level"),
    [
        ([line("a", 0.80), line("b", 0.70)], ["a"]),
        ([line("b", 0.70), line("a", 0.80), line("c", 0.79)], ["a", "c"]),
        ([line("a", 0.80, 0.001), line("b", 0.75, 0.06)], ["a", "b"]),  # a wide interval reaches the best
        # Apart, but in another order over the seeds: the differences are 0.00, 0.12 and 0.12, of standard error 0.04.
        ([line("a", 0.80, 0.0231), line("b", 0.72, 0.0231, shift=1)], ["a", "b"]),
        ([line("a", 0.80, 0.0231), line("b", 0.72, 0.0231)], ["a"]),  # the same one, over every seed
        # Two methods: Student's t of two degrees of freedom, 4.3: 0.10 of standard error 0.02 is 5.0, of 0.03 3.3.
        ([line("a", 0.80, 0.0), line("b", 0.70, 0.02)], ["a"]),
        ([line("a", 0.80, 0.0), line("b", 0.70, 0.03)], ["a", "b"]),
        # Three: 0.10 of an error 0.03 sqrt(2/3) is 4.1, of 0.04 sqrt(2/3) 3.06; Tukey's 5.04 / sqrt 2 is 3.56.
        ([line("a", 0.80, 0.0), line("b", 0.70, 0.03), line("c", 0.70, 0.03)], ["a"]),
        ([line("a", 0.80, 0.0), line("b", 0.70, 0.04), line("c", 0.70, 0.04)], list("abc")),
    ],
)
def test_level_with_best(lines, level):
    assert level_with_best(lines) == level


def test_one_seed_names_no_winner():
    lines = [line("a", 0.9, num_seeds=1), line("b", 0.1, num_seeds=1)]
    assert lines[0].accuracy == Estimate(0.9, math.inf, 1)
    assert verdict(lines) == "One seed each: no method can be told from another."
    assert level_with_best(lines) == ["a", "b"]


def test_methods_of_one_seed_are_left_out_of_what_is_said():
    several = [line("a", 0.8), line("b", 0.6)]
    once = [line("c", 0.9, num_seeds=1), line("d", 0.1, num_seeds=1)]
    assert verdict(several) == "a is the best."
    assert verdict([once[0], *several]) == "a is the best. Of c there is one seed, which tells nothing."
    assert verdict([*once, *several]).endswith(" Of c and d there is one seed, which tells nothing.")
    assert verdict([*once, several[1]]) == "Only b has more than one seed: no method can be told from another."


def test_everything_level_has_no_others():
    assert verdict([line("a", 0.8), line("b", 0.8)]) == "a has the highest mean; b cannot be told from it."


def test_a_wide_interval_is_not_above_what_it_reaches():
    # b's reaches to c, which lies apart from the best: it is the best alone that is above c.
    lines = [line("a", 0.84, 0.001), line("b", 0.795, 0.02), line("c", 0.775, 0.001)]
    assert level_with_best(lines) == ["a", "b"]
    assert verdict(lines) == "a has the highest mean; b cannot be told from it; it is above c."
    three = [line("a", 0.84), line("b", 0.83), line("c", 0.83), line("d", 0.1), line("e", 0.1)]
    assert verdict(three) == "a has the highest mean; b and c cannot be told from it; it is above d and e."


def test_two_seeds_are_told_to_be_few():
    lines = [line("a", 0.8, 0.01, num_seeds=5), line("b", 0.7, 0.01, num_seeds=2)]
    assert verdict(lines).endswith(" Two seeds tell little of how seeds differ.")


def test_only_seeds_that_both_have_are_compared():
    one = summarize(row("a", 0.8, seed) for seed in range(3))[0]
    other = summarize(row("b", 0.5, seed) for seed in range(3, 6))[0]
    assert not Trial.of([one, other]).is_above(one, other)  # nothing of it is paired
    assert Trial.of([one, other]).least_difference(one, other) == math.inf
    assert "a has not two seeds in common with b." in markdown([one, other], cost_epochs=1, epochs=9, stability={})
    # A seed that one of them has alone moves its mean, and tells nothing.
    lone = summarize([row("c", 0.8, 0), row("c", 0.8, 1), row("c", 0.0, 9)])[0]
    assert not Trial.of([one, lone]).is_above(one, lone)


def test_a_mean_over_seeds_that_another_has_not_makes_no_winner():
    # By every seed that both have b is 0.4 points above; by the means a is.
    rows = [row("a", value, seed) for seed, value in enumerate([0.780, 0.782, 0.781] + [0.792] * 7)]
    rows += [row("b", value, seed) for seed, value in enumerate([0.784, 0.786, 0.785])]
    a, b = lines = summarize(rows)
    assert a.accuracy.mean > b.accuracy.mean
    assert not a.accuracy.overlaps(b.accuracy)
    assert not any(Trial.of(lines).is_above(*pair) for pair in ((a, b), (b, a)))
    assert verdict(lines) == "a has the highest mean; b cannot be told from it."
    text = markdown(lines, cost_epochs=1, epochs=9, stability={})
    assert "The seeds of a are not all those of b: means are over all of each, but only seeds that both have" in text


def test_more_seeds_of_two_methods_tell_them_apart_beside_others_with_few():
    noise = 0.003 * np.random.default_rng(0).standard_normal((5, 20))
    means = {"a": 0.800, "b": 0.794, "c": 0.78, "d": 0.77, "e": 0.76}
    rows = [
        row(name, mean + noise[of, seed], seed)
        for of, (name, mean) in enumerate(means.items())
        for seed in range(20 if name in "ab" else 3)
    ]
    a, b, *others = summarize(rows)
    trial, alone = Trial.of([a, b, *others]), Trial.of([a, b])
    assert trial.is_above(a, b)
    # Of 49 accuracies five methods and twenty seeds take 24: Tukey's 4.153 for five methods and 25 degrees of freedom,
    # by what noise there is.
    assert trial.of_seeds(a, b) == pytest.approx(4.153 * 0.003 / math.sqrt(20), rel=0.25)
    assert alone.of_seeds(a, b) == pytest.approx(2.960 * 0.003 / math.sqrt(20), rel=0.25)
    assert trial.of_seeds(a, others[0]) == pytest.approx(trial.of_seeds(a, b) * math.sqrt(20 / 3))


def test_seeds_of_different_methods_by_hand():
    # a, b and c have 1, 2, 3 and 2, 1, 3 and 4, 4 in hundredths; c lacks the last seed. By the first two seeds the
    # middle of a and b is level; what is left of the eight is a's and b's difference of 1, -1 and 0, shared out, and
    # none of c's: a sum of squares of 1/2 + 1/2, in three degrees of freedom (8 - 3 methods - 3 seeds + 1).
    values = {"a": (0.71, 0.72, 0.73), "b": (0.72, 0.71, 0.73), "c": (0.64, 0.64)}
    lines = summarize(row(name, value, seed) for name, of in values.items() for seed, value in enumerate(of))
    by_name = {line.method: line for line in lines}
    trial = Trial.of(lines)
    assert trial.of_one_seed == pytest.approx(5.9096 * 0.01 * math.sqrt(1 / 3), rel=1e-4)
    assert trial.of_seeds(by_name["a"], by_name["b"]) == pytest.approx(trial.of_one_seed / math.sqrt(3))
    assert trial.of_seeds(by_name["a"], by_name["c"]) == pytest.approx(trial.of_one_seed / math.sqrt(2))


def test_intervals_are_added_up():
    # 0.014 apart, 0.01 each: they meet, though not at the root of the sum of squares.
    assert Estimate(0.8, 0.01, 3).overlaps(Estimate(0.785, 0.01, 3))
    assert not Estimate(0.8, 0.01, 3).overlaps(Estimate(0.779, 0.01, 3))


@pytest.mark.parametrize("num_seeds", [(3, 3, 3, 3, 3), (5, 5, 5, 5, 5), (12, 12, 3, 3, 3), (9, 7, 5, 3, 2)])
def test_of_equal_methods_hardly_ever_one_is_told_apart(num_seeds):
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(400):
        accuracy = 0.8 + 0.005 * (rng.standard_normal((5, 12)) + rng.standard_normal(12))
        rows = [
            row(name, accuracy[of, seed], seed, num_eval=20_000)
            for of, name in enumerate("abcde")
            for seed in range(num_seeds[of])
        ]
        told += len(level_with_best(summarize(rows))) < 5
    assert 0.01 < told / 400 < 0.08  # 0.05 for any two of them; by intervals alone some 0.7


def test_nor_by_the_images_that_were_held_out():
    # Of every image a method is right with a chance of its own, four tenths of 0.95, a fifth of 0.2 and of 0.05, which
    # no seed changes: over all images that there are the methods are equal, over a thousand that were held out not.
    rng = np.random.default_rng(0)
    told, told_by_seeds = 0, 0
    for _ in range(400):
        chance = rng.choice([0.95, 0.95, 0.95, 0.2, 0.05], (5, 1, 1_000))
        right = rng.random((5, 3, 1_000)) < chance
        rows = [
            row(name, right[of, s].mean(), s, right=right[of, s]) for of, name in enumerate("abcde") for s in range(3)
        ]
        best, *others = summarize(rows)
        trial = Trial.of([best, *others])
        apart = [line for line in others if trial.is_above(best, line)]
        told += len(apart) > 0
        told_by_seeds += best.accuracy.mean - others[-1].accuracy.mean > trial.of_seeds(best, others[-1])
    assert told / 400 < 0.05
    assert told_by_seeds / 400 > 0.2  # seeds tell nothing of it


def test_the_least_difference_by_hand():
    # Two methods and three seeds: differences 0.00, 0.04 and 0.08, so a standard error of 0.04 / sqrt 3, times
    # Student's t of two degrees of freedom, 4.303.
    rows = [row("a", value, seed) for seed, value in enumerate((0.80, 0.82, 0.84))]
    rows += [row("b", value, seed) for seed, value in enumerate((0.80, 0.78, 0.76))]
    lines = summarize(rows)
    trial = Trial.of(lines)
    assert trial.of_seeds(*lines) == pytest.approx(4.3027 * 0.04 / math.sqrt(3), rel=1e-4)
    # So many images add nothing.
    assert trial.least_difference(*lines) == pytest.approx(trial.of_seeds(*lines), rel=1e-3)
    text = markdown(summarize(rows), cost_epochs=1, epochs=9, stability={})
    assert "b cannot be told from it. Differences of up to 9.94 points are within chance." in text


def test_what_the_held_out_images_do_by_hand():
    # Of six images, two seeds: the differences of a and b are 1 and 1, 1 and 0, 0 and 0 (four times), so their means 1,
    # 1/2 and 0, of a variance 1/5 (5/4 - 6/16) = 0.175, less half of the mean over the images of the seeds', 1/2 / 6.
    rights = {"a": ([1, 1, 1, 1, 0, 0], [1, 0, 1, 1, 0, 0]), "b": ([0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0])}
    rows = [row(name, np.mean(r), s, right=np.array(r, bool)) for name, of in rights.items() for s, r in enumerate(of)]
    one, other = summarize(rows)
    trial = Trial.of([one, other])
    assert trial.quantile == pytest.approx(1.95996, rel=1e-5)
    of_images = 1.95996**2 * (0.175 - 1 / 24) / 6
    assert trial.least_difference(one, other) == pytest.approx(
        math.sqrt(trial.of_seeds(one, other) ** 2 + of_images), rel=1e-5
    )
    # Seeds alike: a tenth of a hundred images is the one's, 0.09 x 100 / 99 / 100 is the variance of that.
    rows = [row(name, accuracy, seed, num_eval=100) for seed in range(2) for name, accuracy in (("a", 0.9), ("b", 0.8))]
    lines = summarize(rows)
    assert Trial.of(lines).least_difference(*lines) == pytest.approx(1.95996 * math.sqrt(0.09 / 99), rel=1e-5)


def test_one_held_out_image_tells_nothing():
    rows = [row(name, value, seed, num_eval=1) for seed in range(3) for name, value in (("a", 1.0), ("b", 0.0))]
    assert level_with_best(summarize(rows)) == ["a", "b"]


@pytest.mark.parametrize("num_eval", [1, 7, 8, 9, 1000])
def test_what_a_network_is_right_of_is_read_as_it_was_written(num_eval):
    right = np.random.default_rng(num_eval).random(num_eval) < 0.5
    np.testing.assert_array_equal(unpack(pack(right), num_eval), right)


def test_differences_within_chance_are_told_of_each_method():
    right = np.arange(10_000) < 8_000
    rows = [row("a", 0.8, seed, right=right) for seed in range(2)]
    rows += [row("b", 0.8, seed, right=right[::-1]) for seed in range(2)]  # as good, of other images
    rows += [row("c", 0.79, seed, right=np.arange(10_000) < 7_900) for seed in range(2)]
    text = markdown(summarize(rows), cost_epochs=1, epochs=9, stability={})
    # Three pairs: z = 2.394; variances 0.4 and 0.01 x 0.99, over 10,000.
    assert "Within chance are differences from a of up to 0.24 (c) to 1.51 points (b)." in text


def test_a_method_whose_seeds_differ_wildly_is_named():
    wild = [line("a", 0.80, 0.003), line("b", 0.78, 0.003, shift=1), line("c", 0.3, 0.1, shift=2)]
    said = "Most of what seeds make of that is by c: without it the others are told apart more closely."
    assert said in markdown(wild, cost_epochs=1, epochs=9, stability={})
    tame = [line("a", 0.80), line("b", 0.78, shift=1), line("c", 0.3, shift=2)]
    assert "Most of what seeds" not in markdown(tame, cost_epochs=1, epochs=9, stability={})


@pytest.mark.parametrize(("accuracy", "is_void"), [(0.55, True), (0.56, True), (0.60, False)])
def test_networks_that_guess_are_told_of(accuracy, is_void):
    # Two classes and 40,000 images: one half and twice 0.0025; the mean recall of `row` is 0.9 of the accuracy.
    rows = [row("a", accuracy, num_eval=40_000), row("b", 0.5, num_eval=40_000)]
    text = markdown(summarize(rows), cost_epochs=1, epochs=9, stability={})
    assert ("Yet none is better than to take all images for one class" in text) == is_void


@pytest.mark.parametrize(("num_eval", "level"), [(100, ["a", "b"]), (10_000, ["a"])])
def test_one_image_is_no_winner_however_alike_the_seeds(num_eval, level):
    # 0.01 apart for every seed: of a hundred images one, which may as well have been none.
    rows = [
        row(name, accuracy, seed, num_eval=num_eval)
        for seed in range(3)
        for name, accuracy in (("a", 0.91), ("b", 0.90))
    ]
    lines = summarize(rows)
    assert level_with_best(lines) == level
    text = markdown(lines, cost_epochs=1, epochs=9, stability={})
    points = 100 * math.sqrt(0.9 * 0.1 / num_eval)
    assert f"Measured on {num_eval:,} others, an accuracy would come out otherwise by up to {points:.1f} points" in text


def test_what_has_one_seed_is_not_in_bold():
    lines = [line("a", 0.80), line("b", 0.70), line("c", 0.95, num_seeds=1), line("d", 0.30, num_seeds=1)]
    text = markdown(summarize_again(lines), cost_epochs=1, epochs=9, stability={})
    assert "a is the best. Of c and d there is one seed, which tells nothing." in text
    assert [name for name in "abcd" if f"| **{name}** |" in text] == ["a"]


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (["b"], "Counted in epochs, scoring is paid back after 0.5 trainings on the subset.\n"),
        (
            ["random", "b"],
            "subset. Nothing shows that it pays here: random, without scores, cannot be told from the best.\n",
        ),
        (
            ["random", "random_balanced"],
            "here: random and random_balanced, without scores, cannot be told from the best.\n",
        ),
    ],
)
def test_scoring_has_not_paid_where_random_is_as_good(others, said):
    lines = [line("razor", 0.80), *(line(name, 0.799 - 0.001 * place) for place, name in enumerate(others))]
    assert said in markdown(summarize_again(lines), cost_epochs=4.5, epochs=10, stability={})
    worse = [line("razor", 0.80), *(line(name, 0.5) for name in others)]
    assert "Nothing shows" not in markdown(summarize_again(worse), cost_epochs=4.5, epochs=10, stability={})


def test_what_is_missing_is_told():
    lines = [line("a", 0.8), line("b", 0.7)]
    assert "Not complete: 3 trainings" in markdown(lines, cost_epochs=1, epochs=9, stability={}, num_missing=3)
    assert "complete" not in markdown(lines, cost_epochs=1, epochs=9, stability={})


@pytest.mark.parametrize(
    ("arguments", "expected"), [((10.0, 20, 0.5), 1.0), ((4 + 1 / 3, 10, 0.3), 13 / 21), ((1.0, 10, 1.0), math.inf)]
)
def test_break_even(arguments, expected):
    assert break_even(*arguments) == pytest.approx(expected)


def test_rank_stability_by_hand():
    one = np.array([1.0, 2.0, 3.0, 4.0])
    # Ranks 1 2 3 4 against 2 1 3 4: 1 - 6 (1 + 1) / (4 x 15) = 0.8.
    found = rank_stability(one, np.array([2.0, 1.0, 3.0, 40.0]), top_fractions=(0.5, 0.75))
    assert found["spearman"] == pytest.approx(0.8)
    assert found["top 50 %"] == 1.0
    assert found["top 75 %"] == pytest.approx(2 / 3)
    assert rank_stability(one, -one)["spearman"] == pytest.approx(-1.0)


def test_rank_stability_of_equals():
    # Ranks 1.5 1.5 3 4 against 1 2 3.5 3.5: deviations -1 -1 .5 1.5 and -1.5 -.5 1 1, so 4 / sqrt(4.5 x 4.5).
    found = rank_stability(np.array([1.0, 1.0, 3.0, 4.0]), np.array([1.0, 2.0, 5.0, 5.0]))
    assert found["spearman"] == pytest.approx(4 / 4.5)
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, (2, 50_000))  # as of forgetting: a tenth of them is some of the equally hardest
    found = rank_stability(*counts)
    assert found["top 10 %"] == pytest.approx(0.1, abs=0.02)
    assert found["top 30 %"] == pytest.approx(0.3, abs=0.02)
    constant = rank_stability(np.zeros(10), np.arange(10.0))
    assert set(constant) == {"spearman", "top 10 %", "top 30 %", "top 50 %"}
    assert all(math.isnan(value) for value in constant.values())


def test_markdown_marks_the_level_and_counts_the_cost():
    lines = summarize(
        [row(ALL, 0.9 + 0.01 * seed, seed, keep_fraction=1.0) for seed in (0, 1)]
        + [
            row(method, accuracy + 0.01 * seed, seed)
            for seed in (0, 1)
            for method, accuracy in (("a", 0.8), ("b", 0.5))
        ]
    )
    text = markdown(lines, cost_epochs=3.0, epochs=10, stability={"other": {"spearman": 0.5}})
    assert "All samples: 90.50 ± 0.50 % (2 seeds), 5 s." in text
    assert "| **a** | 80.50 ± 0.50 | 40.25 ± 0.25 | 72.45 ± 0.45 | 5 | 2 |" in text
    assert "| b | 50.50 ± 0.50 |" in text
    assert "a is the best. Two seeds tell little" in text
    assert "Counted in epochs, scoring is paid back after 0.3 trainings on the subset." in text  # 3 / (10 x 0.9)
    assert "30 % of one training of 10 epochs" in text
    assert "a is 10.00 points below all samples. Counted" in text
    assert "| other | 0.500 |" in text


@pytest.mark.parametrize("whole", [[0.82, 0.80], [0.9]])  # intervals that meet, and one seed, which has none
def test_nothing_is_said_of_all_samples_that_seeds_may_have_made(whole):
    rows = [row(ALL, accuracy, seed, keep_fraction=1.0) for seed, accuracy in enumerate(whole)]
    rows += [row("a", accuracy, seed) for seed, accuracy in enumerate([0.80, 0.81])]
    text = markdown(summarize(rows), cost_epochs=3.0, epochs=10, stability={})
    points = 100 * (np.mean(whole) - 0.805)
    assert f"a has a mean {points:.2f} points below all samples, from which it cannot be told." in text


def test_a_subset_may_be_better_than_everything():
    rows = [row(ALL, 0.7 + 0.01 * seed, seed, keep_fraction=1.0) for seed in (0, 1)]
    rows += [row("a", 0.80 + 0.01 * seed, seed) for seed in (0, 1)]
    rows.append(row("b", 0.3))  # one seed of another method takes nothing from it
    assert "a is 10.00 points above all samples." in markdown(summarize(rows), cost_epochs=3, epochs=10, stability={})
    rows.append(row("b", 0.95))
    assert "from which it cannot be told" in markdown(
        summarize(rows[:-2] + rows[-1:]), cost_epochs=3, epochs=10, stability={}
    )


def test_the_training_of_weights_that_were_given_is_not_counted():
    rows, said = [row("a", 0.8)], "and the training of weights that were given is not counted"
    assert said in markdown(summarize(rows), cost_epochs=1 / 3, epochs=10, stability={})
    assert said not in markdown(summarize(rows), cost_epochs=4 + 1 / 3, epochs=10, stability={})


def test_no_break_even_is_told_of_another_network_or_of_equal_steps():
    rows = [row("a", 0.8), row("a", 0.8, budget="steps")]
    text = markdown(summarize(rows), cost_epochs=4.0, epochs=10, stability={})
    assert text.count("Counted in epochs") == 1 and text.count("Equal steps save nothing.") == 1
    assert "4.0 epochs on all samples, 40 % of one training of 10 epochs; a pass" in text
    other = markdown(summarize(rows), cost_epochs=4.0, epochs=10, other_network="resnet9 at 32 pixels", stability={})
    assert "Counted in epochs" not in other and "40 %" not in other
    assert "4.0 epochs on all samples of another network (resnet9 at 32 pixels)" in other
