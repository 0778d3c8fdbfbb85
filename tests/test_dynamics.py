"""Scores over the epochs of a training, by hand and against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from razor_ray.config import MAX_PROXY_EPOCHS
from razor_ray.dynamics import Dynamics, merge
from razor_ray.schema import DYNAMICS_NAMES as NAMES


def run(p, *, correct=None, ids=None) -> Dynamics:
    """Dynamics of predicted probabilities (T, n)."""
    p = np.asarray(p, float)
    ids = np.arange(p.shape[1]) if ids is None else np.asarray(ids)
    correct = p > 0.5 if correct is None else np.asarray(correct, bool)
    return merge(
        Dynamics.of_epoch(epoch, ids, el2n=1 - row, p=row, margin=10 * row, correct=correct[epoch])
        for epoch, row in enumerate(p)
    )


def test_by_hand():
    scores = run([[0.2, 0.9], [0.6, 0.9]]).scores()
    np.testing.assert_allclose(scores["mean_el2n"], [0.6, 0.1], rtol=1e-6)
    np.testing.assert_allclose(scores["mean_p"], [0.4, 0.9], rtol=1e-6)
    np.testing.assert_allclose(scores["dyn_unc"], [0.2, 0.0], atol=1e-7)
    np.testing.assert_allclose(scores["dual"], [0.2 * 0.6, 0.0], atol=1e-7)
    np.testing.assert_allclose(scores["aum"], [-4.0, -9.0], rtol=1e-6)
    assert set(scores) == set(NAMES)


@pytest.mark.parametrize(
    ("right", "events"),
    [
        ("1111", 0),
        ("0011", 0),
        ("1000", 1),
        ("1010", 2),
        ("0101", 1),
        ("0000", 5),  # never learned: above any number of events that four epochs can have
    ],
)
def test_forgetting_by_hand(right, events):
    correct = np.array([[letter == "1"] for letter in right])
    assert run(np.zeros((4, 1)), correct=correct).scores()["forgetting"] == [events]


def one_step(epoch, p, *, ids=(7,), correct=True, el2n=0.5) -> Dynamics:
    """What an epoch saw of samples that it took alike."""
    same = np.full(len(ids), 1.0)
    columns = {"el2n": el2n * same, "p": p * same, "margin": same, "correct": same == float(correct)}
    return Dynamics.of_epoch(epoch, np.array(ids), **columns)


def test_an_epoch_that_did_not_see_a_sample_is_no_event():
    found = merge([one_step(0, 0.5, correct=True), one_step(2, 0.5, correct=False)])
    assert found.scores()["forgetting"] == [1]
    assert found.count == [2]


def test_never_learned_is_above_all_that_was_forgotten():
    # Of 8 only one step did not overflow; 7 was forgotten twice.
    history = [one_step(epoch, 0.5, ids=(7, 8) if epoch == 1 else (7,), correct=epoch in (0, 2)) for epoch in range(4)]
    assert merge(history).scores()["forgetting"].tolist() == [2, 5]


def test_nothing_was_seen():
    assert merge([]).sample_id.shape == (0,)
    assert all(values.shape == (0,) for values in merge([]).scores().values())


@pytest.mark.parametrize("broken", ["el2n", "p", "margin"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_that_overflowed_is_not_counted(broken, value):
    columns = {name: np.array([0.25, 0.25]) for name in ("el2n", "p", "margin")} | {"correct": np.array([True, True])}
    columns[broken][0] = value
    step = Dynamics.of_epoch(1, np.array([7, 8]), **columns)
    assert step.sample_id.tolist() == [8]  # of the other nothing is known
    found = merge([one_step(0, 0.75), step])
    assert (found.sample_id.tolist(), found.count.tolist()) == ([7, 8], [1, 1])
    assert found.scores()["mean_p"].tolist() == [0.75, 0.25]
    assert all(np.isfinite(values).all() for values in found.scores().values())


def test_of_a_sample_that_came_twice_the_first_counts():
    columns = {"el2n": np.zeros(3), "margin": np.zeros(3), "correct": np.array([True, False, False])}
    found = Dynamics.of_epoch(0, np.array([9, 7, 9]), p=np.array([0.5, 0.25, 0.125]), **columns)
    assert (found.sample_id.tolist(), found.p.tolist(), found.count.tolist()) == ([7, 9], [0.25, 0.5], [1, 1])
    assert found.correct.tolist() == [0, 1]


def test_ids_above_2_to_the_32():
    ids = np.array([5 << 32 | 3, 1, 2**24 + 1, 2**24])
    scores = run([[0.1, 0.2, 0.3, 0.4]], ids=ids).scores()
    np.testing.assert_allclose(scores["mean_p"], [0.2, 0.4, 0.3, 0.1], rtol=1e-6)  # by ascending id


@given(st.integers(1, MAX_PROXY_EPOCHS), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_against_the_whole_history(epochs, num_samples, seed):
    rng = np.random.default_rng(seed)
    p = rng.random((epochs, num_samples))
    scores = run(p).scores()
    np.testing.assert_allclose(scores["dyn_unc"], p.std(axis=0), atol=1e-6)
    np.testing.assert_allclose(scores["dual"], p.std(axis=0) * (1 - p.mean(axis=0)), atol=1e-6)
    right = p > 0.5
    events = (right[:-1] & ~right[1:]).sum(axis=0)
    np.testing.assert_array_equal(scores["forgetting"], np.where(right.any(axis=0), events, epochs + 1))


@given(st.integers(2, 9), st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_workers_may_share_samples_in_any_way(epochs, num_samples, seed):
    # As when every epoch deals the samples out anew: each worker then holds a part of the history of each.
    rng = np.random.default_rng(seed)
    p, owner = rng.random((epochs, num_samples)), rng.integers(0, 2, (epochs, num_samples))
    ids = rng.permutation(num_samples)
    workers = [merge([]) for _ in range(2)]
    for epoch in range(epochs):
        for rank in range(2):
            mine = owner[epoch] == rank
            row = p[epoch, mine]
            seen = Dynamics.of_epoch(epoch, ids[mine], el2n=1 - row, p=row, margin=10 * row, correct=row > 0.5)
            workers[rank] = merge([workers[rank], seen])
    merged, alone = merge(workers).scores(), run(p, ids=ids).scores()
    for name in NAMES:
        np.testing.assert_allclose(merged[name], alone[name], atol=1e-6)


@pytest.mark.parametrize("epoch", [-1, MAX_PROXY_EPOCHS])
def test_an_epoch_without_a_bit_is_refused(epoch):
    with pytest.raises(ValueError, match="epoch must be in"):
        one_step(epoch, 0.5)
