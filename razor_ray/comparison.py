"""What a comparison of methods says: means with their standard errors, and who can be told apart from whom.

Rows are dictionaries of one training each: `method`, `keep_fraction`, `budget`, `seed`, `accuracy`, `worst_recall`,
`macro_recall`, `recall`, `seconds`, `num_eval`, the held-out images, and `right`, which of them it is right of
(`pack`). The method `all` is the training on everything.
"""

from __future__ import annotations

import base64
import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALL = "all"
"""The name of the training on everything."""

_UNSCORED = ("random", "random_balanced")
"""Methods that need no scores."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    error: float
    """The mean's standard error; infinite for one seed, which tells nothing of how seeds differ."""
    num_seeds: int

    def overlaps(self, other: Estimate) -> bool:
        """Whether the intervals of one standard error to each side meet."""
        return abs(self.mean - other.mean) <= self.error + other.error

    def in_points(self) -> str:
        """As percentages.

        >>> Estimate(0.75213, 0.0042, 3).in_points(), Estimate(0.75213, math.inf, 1).in_points()
        ('75.21 ± 0.42', '75.21')
        """
        error = f" ± {100 * self.error:.2f}" if math.isfinite(self.error) else ""
        return f"{100 * self.mean:.2f}{error}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error (with n - 1 degrees of freedom) of one value for each seed.

    >>> estimate([0.5, 0.7])
    Estimate(mean=0.6, error=0.1, num_seeds=2)
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, math.inf, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Estimate(round(mean, 12), round(math.sqrt(variance / count), 12), count)


@dataclass(frozen=True, slots=True)
class Summary:
    """A method at a budget."""

    budget: str
    keep_fraction: float
    method: str
    accuracy: Estimate
    worst_recall: Estimate
    macro_recall: Estimate
    seconds: float
    """Median over the seeds, of the training."""
    by_seed: Mapping[int, float]
    """Accuracies."""
    right: Mapping[int, NDArray[np.bool_]]
    """By seed, which of the M held-out images the network is right of, (M,)."""
    num_classes: int
    """That have a held-out image."""

    def seeds_with(self, other: Summary) -> list[int]:
        """Seeds that both have."""
        return sorted(self.by_seed.keys() & other.by_seed.keys())

    @property
    def num_eval(self) -> int:
        """Held-out images, on which all were measured."""
        return len(next(iter(self.right.values())))

    @property
    def is_guessing(self) -> bool:
        """Whether the mean recall is no more than two standard errors above one that takes all for one class."""
        by_chance = 1 / self.num_classes
        error = math.sqrt(by_chance * (1 - by_chance) / self.num_eval)
        return self.num_classes > 1 and self.macro_recall.mean <= by_chance + 2 * error


def pack(right: NDArray[np.bool_]) -> str:
    """Which of the held-out images a network is right of, as text for a row.

    >>> pack(np.array([True, False, True])), unpack("oA==", 3).tolist()
    ('oA==', [True, False, True])
    """
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpack(packed: str, num_eval: int) -> NDArray[np.bool_]:
    """The inverse of `pack`: (M,) of so many images."""
    bits = np.frombuffer(base64.b64decode(packed), np.uint8)
    return np.unpackbits(bits, count=num_eval).astype(bool)


@dataclass(frozen=True, slots=True)
class Trial:
    """Methods at one budget side by side: which of them chance can tell apart, over the seeds that both have.

    Two chances make a difference: a seed, which decides the choice and the training of every method, and the held-out
    images, of which one method may be right for good and another not, however many seeds there are.

    References
    ----------
    Tukey, The Problem of Multiple Comparisons, 1953: the honestly significant difference, here of randomised blocks.
    Kramer, Extension of multiple range tests to group means with unequal numbers of replications, 1956: where methods
    have not all the same seeds.
    """

    of_one_seed: float
    """The honestly significant difference of two accuracies of one seed, as far as seeds make it; infinite if there are
    too few."""
    quantile: float
    """Of the normal distribution, for as many pairs as there are."""

    @classmethod
    def of(cls, lines: Sequence[Summary]) -> Trial:
        """The trial of some methods; without two of them or two seeds in common nothing can be told apart."""
        accuracy = np.array([value for line in lines for value in line.by_seed.values()])  # (n,)
        method = np.array([index for index, line in enumerate(lines) for _ in line.by_seed])
        seeds, seed = np.unique([each for line in lines for each in line.by_seed], return_inverse=True)
        # An accuracy is what its method and its seed make of it, and chance.
        design = np.hstack([np.eye(len(lines))[method], np.eye(len(seeds))[seed]])
        effects, _, rank, _ = np.linalg.lstsq(design, accuracy, rcond=None)
        freedom = len(accuracy) - int(rank)
        if len(lines) < 2 or freedom < 1:
            return cls(math.inf, math.inf)
        from scipy.stats import norm  # late: scipy takes a second to import

        error = math.sqrt(np.square(accuracy - design @ effects).sum() / freedom)
        quantile = float(norm.ppf(1 - 0.025 / math.comb(len(lines), 2)))
        return cls(_studentized_range(len(lines), freedom) * error, quantile)

    def of_seeds(self, one: Summary, other: Summary) -> float:
        """What of the least difference seeds make; infinite if the two have fewer than two in common."""
        num_seeds = len(one.seeds_with(other))
        return self.of_one_seed / math.sqrt(num_seeds) if num_seeds > 1 else math.inf

    def least_difference(self, one: Summary, other: Summary) -> float:
        """Between two accuracies, to be more than chance makes of any two of equal methods in 5 % of such trials."""
        of_seeds = self.of_seeds(one, other)
        if math.isinf(of_seeds) or one.num_eval < 2:
            return math.inf
        seeds = one.seeds_with(other)
        differing = np.array([one.right[seed].astype(np.int8) - other.right[seed] for seed in seeds])  # (n, M)
        mean_of_seeds = differing.mean(axis=0)
        # A mean over n seeds varies over the images by what they are to the two methods, which stays, and by an n-th of
        # what seeds make of an image, which is in `of_seeds` already.
        of_images = float(mean_of_seeds.var(ddof=1) - differing.var(axis=0, ddof=1).mean() / len(seeds))
        return math.sqrt(of_seeds**2 + self.quantile**2 * max(of_images, 0.0) / one.num_eval)

    def is_above(self, one: Summary, other: Summary) -> bool:
        """Whether a method is better than another: their intervals do not meet, nor is it chance.

        Both the means and the seeds that the two share must say so: a seed that one of them has alone moves its mean.
        """
        seeds = one.seeds_with(other)
        if not seeds or one.accuracy.mean < other.accuracy.mean:
            return False
        distance = math.fsum(one.by_seed[seed] - other.by_seed[seed] for seed in seeds) / len(seeds)
        return distance > self.least_difference(one, other) and not one.accuracy.overlaps(other.accuracy)


@functools.cache
def _studentized_range(num_methods: int, freedom: int) -> float:
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(0.95, num_methods, freedom))  # most of a second


def summarize(rows: Iterable[dict[str, Any]]) -> list[Summary]:
    """A line for each method at each budget, the best first within a budget."""
    groups: dict[tuple[str, float, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["budget"], row["keep_fraction"], row["method"]].append(row)
    found = [
        Summary(
            *key,
            accuracy=estimate([row["accuracy"] for row in group]),
            worst_recall=estimate([row["worst_recall"] for row in group]),
            macro_recall=estimate([row["macro_recall"] for row in group]),
            seconds=float(np.median([row["seconds"] for row in group])),
            by_seed={row["seed"]: row["accuracy"] for row in group},
            right={row["seed"]: unpack(row["right"], row["num_eval"]) for row in group},
            num_classes=sum(recall is not None for recall in group[0]["recall"]),
        )
        for key, group in groups.items()
    ]
    return sorted(found, key=lambda line: (line.budget, line.keep_fraction, -line.accuracy.mean, line.method))


def level_with_best(lines: Sequence[Summary]) -> list[str]:
    """Methods whose accuracy cannot be told from the best one's, of lines at one budget; the best first."""
    best, trial = max(lines, key=lambda line: line.accuracy.mean), Trial.of(lines)
    level = [line for line in lines if line is not best and not trial.is_above(best, line)]
    return [best.method, *(line.method for line in sorted(level, key=lambda line: -line.accuracy.mean))]


def verdict(lines: Sequence[Summary]) -> str:
    """One sentence on the lines at one budget. A winner is named only where it differs from all others.

    >>> def line(method, *accuracies):
    ...     right = {seed: np.arange(10_000) < 10_000 * accuracy for seed, accuracy in enumerate(accuracies)}
    ...     all_of = [estimate(accuracies)] * 3
    ...     return Summary("epochs", 0.1, method, *all_of, 1.0, dict(enumerate(accuracies)), right, num_classes=10)
    >>> verdict([line("a", 0.80, 0.81, 0.79), line("b", 0.70, 0.71, 0.70)])
    'a is the best.'
    >>> verdict([line("a", 0.80, 0.81, 0.79), line("b", 0.79, 0.78, 0.80), line("c", 0.10, 0.12, 0.11)])
    'a has the highest mean; b cannot be told from it; it is above c.'
    """
    if len(lines) == 1:
        return "There is nothing to compare with."
    several = [line for line in lines if math.isfinite(line.accuracy.error)]
    if not several:
        return "One seed each: no method can be told from another."
    if len(several) < len(lines):
        once = _listed([line.method for line in lines if line not in several])
        if len(several) == 1:
            return f"Only {several[0].method} has more than one seed: no method can be told from another."
        return f"{verdict(several)} Of {once} there is one seed, which tells nothing."
    best, *level = level_with_best(lines)
    # Of the others it is said only that they are below the best: a wide interval that reaches it may reach them too.
    below = [line.method for line in lines if line.method not in (best, *level)]
    if level:
        above = f"; it is above {_listed(below)}" if below else ""
        found = f"{best} has the highest mean; {_listed(level)} cannot be told from it{above}."
    else:
        found = f"{best} is the best."
    num_seeds = min(line.accuracy.num_seeds for line in lines)
    return f"{found} Two seeds tell little of how seeds differ." if num_seeds == 2 else found


def break_even(cost_epochs: float, epochs: float, keep_fraction: float) -> float:
    """Trainings on the subset after which choosing it has paid for itself.

    Parameters
    ----------
    cost_epochs : float
        What scoring cost, in epochs of everything.
    epochs : float
        Of a training.
    keep_fraction : float
        In (0, 1].

    Returns
    -------
    float
        At least 0; infinite if nothing is saved.

    Examples
    --------
    >>> break_even(10.0, 20, 0.5)
    1.0
    """
    saved = epochs * (1 - keep_fraction)
    return cost_epochs / saved if saved > 0 else math.inf


def rank_stability(
    one: NDArray[np.floating], other: NDArray[np.floating], top_fractions: Sequence[float] = (0.1, 0.3, 0.5)
) -> dict[str, float]:
    """How far two runs agree on which samples are hard.

    Parameters
    ----------
    one, other : ndarray of shape (N,)
        Scores of the same samples, higher = harder.
    top_fractions : sequence of float

    Returns
    -------
    dict
        'spearman', and for each fraction 'top 10 %' and so on: of so many hardest of the one, the share that is among
        the hardest of the other. Chance gives 0, and the fraction itself. NaN if all scores of a run are equal.
    """
    from scipy.stats import rankdata  # late: scipy takes a second to import

    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return dict.fromkeys(["spearman", *(f"top {100 * fraction:g} %" for fraction in top_fractions)], math.nan)
    # Spearman's coefficient is Pearson's of the ranks, those of equals averaged.
    found = {"spearman": float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])}
    # Equals in a random order, another in each: in one that both share they would agree by more than chance.
    orders = [
        np.lexsort((np.random.default_rng(seed).permutation(len(scores)), -np.asarray(scores)))
        for seed, scores in enumerate((one, other))
    ]
    for fraction in top_fractions:
        count = max(1, round(fraction * len(one)))
        common = np.intersect1d(orders[0][:count], orders[1][:count])
        found[f"top {100 * fraction:g} %"] = len(common) / count
    return found


def markdown(
    lines: Sequence[Summary],
    *,
    cost_epochs: float,
    epochs: int,
    other_network: str = "",
    stability: dict[str, dict[str, float]],
    num_missing: int = 0,
) -> str:
    """The comparison as a Markdown document.

    Parameters
    ----------
    lines : sequence of Summary
        From `summarize`.
    cost_epochs : float
        What scoring cost, in epochs of everything.
    epochs : int
        Of a training.
    other_network : str
        The proxy's, if it is another than was trained, or of other images: its epochs then cost otherwise.
    stability : dict
        `rank_stability` by the name of the other run.
    num_missing : int
        Trainings that were asked for and have not ended.
    """
    parts = ["# Comparison\n"]
    if num_missing:
        are = "1 training is" if num_missing == 1 else f"{num_missing:,} trainings are"
        parts.append(f"Not complete: {are} missing. The same command goes on.\n")
    whole = [line for line in lines if line.method == ALL]
    if whole:
        accuracy = whole[0].accuracy
        parts.append(f"All samples: {accuracy.in_points()} % ({_seeds(accuracy)}), {whole[0].seconds:,.0f} s.\n")
    budgets = sorted({(line.budget, line.keep_fraction) for line in lines if line.method != ALL})
    for budget, fraction in budgets:
        chosen = [line for line in lines if (line.budget, line.keep_fraction) == (budget, fraction)]
        even = break_even(cost_epochs, epochs, fraction) if budget == "epochs" else math.inf
        parts.append(_section(chosen, whole, None if other_network else even))
    if any(math.isfinite(line.accuracy.error) for line in lines):
        parts.append(_how_to_read(lines))
    parts.append("Seconds are of a training as it ran here, beside whatever else did.\n")
    share = f", {100 * cost_epochs / epochs:.0f} % of one training of {epochs} epochs"
    given = ", and the training of weights that were given is not counted" if cost_epochs < 1 else ""
    another = f" of another network ({other_network}), whose epochs cost otherwise: no break-even is told"
    parts.append(
        f"Scoring counts as {cost_epochs:.1f} epochs on all samples{another if other_network else share}; "
        f"a pass that does not train counts as a third of an epoch{given}.\n"
    )
    if stability:
        parts.append(_stability_section(stability))
    return "\n".join(parts)


def _section(lines: Sequence[Summary], whole: Sequence[Summary], even: float | None) -> str:
    """The lines at one budget: their table, and what may be said of them.

    Parameters
    ----------
    lines : sequence of Summary
        The best first.
    whole : sequence of Summary
        That of all samples, if there is one.
    even : float or None
        Trainings after which scoring has paid for itself; infinite if none are enough, None if that is not known.
    """
    parts = [
        f"## Keep {100 * lines[0].keep_fraction:g} %, equal {lines[0].budget}\n",
        "| method | accuracy % | worst class % | macro recall % | seconds | seeds |",
        "|---|---|---|---|---|---|",
    ]
    several = [line for line in lines if math.isfinite(line.accuracy.error)]  # one seed tells nothing
    best = level_with_best(several) if len(several) > 1 else []
    for line in lines:
        name = f"**{line.method}**" if line.method in best else line.method
        numbers = [value.in_points() for value in (line.accuracy, line.worst_recall, line.macro_recall)]
        parts.append(f"| {name} | {' | '.join(numbers)} | {line.seconds:,.0f} | {line.accuracy.num_seeds} |")
    said = [verdict(lines)]
    said += _within_chance(several)
    if all(line.is_guessing for line in lines):
        said.append(
            "Yet none is better than to take all images for one class, so that the order of the methods is void."
        )
    if whole:
        said.append(_against_all(lines[0], several, whole[0]))
    if even is not None and math.isfinite(even):
        said.append(f"Counted in epochs, scoring is paid back after {even:.1f} trainings on the subset.")
        if unscored := [name for name in best if name.partition(":")[0] in _UNSCORED]:
            said.append(
                f"Nothing shows that it pays here: {_listed(unscored)}, without scores, cannot be told from the best."
            )
    elif lines[0].budget == "steps":
        said.append("Equal steps save nothing.")
    parts.append(f"\n{' '.join(said)}\n")
    return "\n".join(parts)


def _within_chance(several: Sequence[Summary]) -> Iterator[str]:
    """How far from the best a method may be by chance; `several` are those of more than one seed."""
    if len(several) < 2:
        return
    trial, best, *others = Trial.of(several), *sorted(several, key=lambda line: -line.accuracy.mean)
    found = [(trial.least_difference(best, line), line.method) for line in others]
    if least := sorted((round(100 * points, 2), method) for points, method in found if math.isfinite(points)):
        (low, nearest), (high, farthest) = least[0], least[-1]
        if low == high:
            yield f"Differences of up to {low:.2f} points are within chance."
        else:
            yield (
                f"Within chance are differences from {best.method} of up to {low:.2f} ({nearest}) to {high:.2f} points "
                f"({farthest})."
            )
    if apart := [line.method for line in others if math.isinf(trial.of_seeds(best, line))]:
        yield f"{best.method} has not two seeds in common with {_listed(apart)}."
    if unequal := [
        line.method for line in others if line.by_seed.keys() != best.by_seed.keys() and line.method not in apart
    ]:
        yield (
            f"The seeds of {best.method} are not all those of {_listed(unequal)}: means are over all of each, but only "
            "seeds that both have tell two methods apart."
        )
    if len(several) > 2:
        others_of = {line.method: [each for each in several if each is not line] for line in several}
        without = {name: Trial.of(lines).of_one_seed for name, lines in others_of.items()}
        wild = min(without, key=lambda name: without[name])
        if without[wild] < trial.of_one_seed / 2:
            yield f"Most of what seeds make of that is by {wild}: without it the others are told apart more closely."


def _against_all(best: Summary, several: Sequence[Summary], whole: Summary) -> str:
    """Of the best of some methods; `several` are those of more than one seed."""
    points = 100 * (whole.accuracy.mean - best.accuracy.mean)
    found = f"{abs(points):.2f} points {'below' if points > 0 else 'above'} all samples"
    trial = Trial.of([*several, whole])
    if best in several and (trial.is_above(best, whole) or trial.is_above(whole, best)):
        return f"{best.method} is {found}."
    return f"{best.method} has a mean {found}, from which it cannot be told."


def _stability_section(stability: dict[str, dict[str, float]]) -> str:
    names = list(next(iter(stability.values())))
    parts = [
        "## Stability of the ranks\n",
        "How far another proxy agrees on which samples are hard: Spearman's rank correlation (by chance 0), and of the "
        "hardest 10 % the share that is among its hardest 10 % (by chance 0.1), and so on. If the runs differ in more "
        "than the seed, so may the ranks.\n",
        f"| other run | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
        *(f"| {run} | {' | '.join(f'{found[name]:.3f}' for name in names)} |" for run, found in stability.items()),
        "",
    ]
    return "\n".join(parts)


def _how_to_read(lines: Sequence[Summary]) -> str:
    variance = max(line.accuracy.mean * (1 - line.accuracy.mean) for line in lines)
    error = 100 * math.sqrt(variance / lines[0].num_eval)
    return (
        "± is the standard error of a mean over seeds: how much trainings differ, all from the scores of one proxy. "
        "Bold is the best method, and each that cannot be told from it: their intervals of one standard error meet, or "
        "they are no further apart than what is given as chance. That is Tukey's for all methods of a "
        "table, over the seeds that two share, so that of equal methods some two are told apart in one table of "
        "twenty, if it is looked at once; and it allows for which images were held out, by how many of them the one "
        "method is right of and the other not in whatever seed. "
        f"Measured on {lines[0].num_eval:,} others, an accuracy would come out otherwise by up to {error:.1f} points "
        "(one standard error), which is not in ±.\n"
    )


def _listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    >>> _listed(["a"]), _listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _seeds(accuracy: Estimate) -> str:
    return f"{accuracy.num_seeds} seed{'' if accuracy.num_seeds == 1 else 's'}"
