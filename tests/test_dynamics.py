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
    found = Dynamics.empty(ids)
    for epoch, row in enumerate(p):
        found.add(epoch, ids, el2n=1 - row, p=row, margin=10 * row, correct=correct[epoch])
    return found


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


def test_an_epoch_that_did_not_see_a_sample_is_no_event():
    found = Dynamics.empty(np.array([7]))
    for epoch, correct in ((0, True), (2, False)):
        one = np.array([0.5])
        found.add(epoch, np.array([7]), el2n=one, p=one, margin=one, correct=np.array([correct]))
    assert found.scores()["forgetting"] == [1]
    assert found.count == [2]


def test_a_sample_that_was_never_seen_has_no_scores():
    scores = Dynamics.empty(np.array([3])).scores()
    assert all(np.isnan(scores[name]).all() for name in NAMES)


def test_a_step_that_overflowed_is_not_counted():
    found = run([[0.5]])
    found.add(
        1, np.array([0]), el2n=np.array([np.nan]), p=np.array([0.1]), margin=np.array([0.0]), correct=np.array([True])
    )
    assert found.count == [1]
    assert found.scores()["mean_p"] == [0.5]


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
    workers = [Dynamics.empty(ids) for _ in range(2)]
    for epoch in range(epochs):
        for rank, worker in enumerate(workers):
            mine = owner[epoch] == rank
            row = p[epoch, mine]
            worker.add(epoch, ids[mine], el2n=1 - row, p=row, margin=10 * row, correct=row > 0.5)
    merged, alone = merge(workers).scores(), run(p, ids=ids).scores()
    for name in NAMES:
        np.testing.assert_allclose(merged[name], alone[name], atol=1e-6)


def test_misuse_is_refused():
    found, one = Dynamics.empty(np.array([1, 2])), np.array([0.5])
    with pytest.raises(ValueError, match="not known"):
        found.add(0, np.array([3]), el2n=one, p=one, margin=one, correct=np.array([True]))
    with pytest.raises(ValueError, match="not known"):
        found.add(0, np.array([0]), el2n=one, p=one, margin=one, correct=np.array([True]))
    with pytest.raises(ValueError, match="epoch must be in"):
        found.add(MAX_PROXY_EPOCHS, np.array([1]), el2n=one, p=one, margin=one, correct=np.array([True]))
    assert found.count.sum() == 0
