from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from razor_ray.hardness import all_scores, cross_entropy, el2n, entropy, grand_last_layer, is_correct, margin

SCORES = [cross_entropy, el2n, margin, entropy]
seeded = settings(deadline=None, derandomize=True, max_examples=100)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of shape (B, C) from almost even to saturated, and labels."""
    num_samples, num_classes = draw(st.integers(1, 9)), draw(st.integers(2, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([0.01, 1.0, 10.0, 100.0]))
    logits = scale * torch.randn(num_samples, num_classes, generator=generator)
    return logits, torch.randint(num_classes, (num_samples,), generator=generator)


def reference(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, np.ndarray]:
    """The definitions, in float64 and one sample at a time."""
    rows: dict[str, list[float]] = {"loss": [], "el2n": [], "margin": [], "entropy": [], "correct": []}
    for z, y in zip(logits.double().numpy(), labels.numpy(), strict=True):
        log_p = z - z.max() - np.log(np.exp(z - z.max()).sum())
        p = np.exp(log_p)
        rows["loss"].append(-log_p[y])
        rows["el2n"].append(np.linalg.norm(p - np.eye(len(z))[y]))
        rows["margin"].append(np.delete(p, y).max() - p[y])
        rows["entropy"].append(-(p * log_p).sum())
        rows["correct"].append(z.argmax() == y)
    return {name: np.array(values) for name, values in rows.items()}


def test_hand_worked_two_classes():
    # p = (3/4, 1/4).
    logits, labels = torch.tensor([[math.log(3), 0.0]] * 2), torch.tensor([0, 1])
    assert_close(cross_entropy(logits, labels), torch.tensor([math.log(4 / 3), math.log(4)]))
    assert_close(el2n(logits, labels), torch.tensor([math.sqrt(2) / 4, math.sqrt(2) * 3 / 4]))
    assert_close(margin(logits, labels), torch.tensor([-0.5, 0.5]))
    assert_close(entropy(logits, labels), torch.tensor([math.log(4) - 0.75 * math.log(3)] * 2))
    assert is_correct(logits, labels).tolist() == [True, False]


def test_hand_worked_three_classes():
    # p = (1/2, 1/4, 1/4), y = 1: p - y = (1/2, -3/4, 1/4), whose squares add up to 14/16.
    logits, labels = torch.tensor([[math.log(2), 0.0, 0.0]]), torch.tensor([1])
    assert_close(cross_entropy(logits, labels), torch.tensor([math.log(4)]))
    assert_close(el2n(logits, labels), torch.tensor([math.sqrt(14) / 4]))
    assert_close(margin(logits, labels), torch.tensor([0.25]))
    assert_close(entropy(logits, labels), torch.tensor([1.5 * math.log(2)]))


def test_hand_worked_grand():
    # |p - y| = sqrt(2) / 2 and |e| = sqrt(3^2 + 4^2 + ...) with (3, 4): sqrt(25 + 1).
    score = grand_last_layer(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([[3.0, 4.0]]))
    assert_close(score, torch.tensor([math.sqrt(13)]))


@given(layouts())
@seeded
def test_scores_follow_their_definitions(layout):
    logits, labels = layout
    expected = reference(logits, labels)
    scores = all_scores(logits, labels)
    assert list(scores) == ["loss", "el2n", "margin", "entropy", "correct"]
    for name in ("loss", "el2n", "margin", "entropy"):
        assert scores[name].dtype == torch.float32
        np.testing.assert_allclose(scores[name], expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert scores["correct"].tolist() == expected["correct"].tolist()


@given(layouts())
@seeded
def test_all_scores_are_the_single_scores(layout):
    scores = all_scores(*layout)
    for name, single in zip(scores, [*SCORES, is_correct], strict=True):
        assert torch.equal(scores[name], single(*layout))


@given(layouts())
@seeded
def test_scores_stay_in_their_bounds(layout):
    logits, labels = layout
    scores = all_scores(logits, labels)
    assert (scores["loss"] >= 0).all()
    assert ((scores["el2n"] >= 0) & (scores["el2n"] <= math.sqrt(2))).all()
    assert ((scores["margin"] >= -1) & (scores["margin"] <= 1)).all()
    assert ((scores["entropy"] >= 0) & (scores["entropy"] <= math.log(logits.shape[1]) + 1e-6)).all()


@given(layouts(), st.randoms(use_true_random=False))
@seeded
def test_order_of_samples_only_reorders_scores(layout, random):
    logits, labels = layout
    order = torch.tensor(random.sample(range(len(labels)), len(labels)))
    before, after = all_scores(logits, labels), all_scores(logits[order], labels[order])
    for name in before:
        assert torch.equal(after[name], before[name][order])


@given(layouts(), st.randoms(use_true_random=False))
@seeded
def test_names_of_classes_do_not_matter(layout, random):
    logits, labels = layout
    order = torch.tensor(random.sample(range(logits.shape[1]), logits.shape[1]))
    before, after = all_scores(logits, labels), all_scores(logits[:, order], order.argsort()[labels])
    for name in ("loss", "el2n", "margin", "entropy"):
        assert_close(after[name], before[name], rtol=1e-5, atol=1e-6)


def test_easy_samples_keep_their_order():
    # With a lead of z, p_y is 1 - e^-z: the loss e^-z and EL2N sqrt(2) e^-z. float32 rounds p_y to 1 from z = 17 on.
    leads = torch.arange(15.0, 40.0)
    logits, labels = torch.stack([leads, torch.zeros_like(leads)], dim=1), torch.zeros(len(leads), dtype=torch.int64)
    tail = torch.exp(-leads)
    assert_close(cross_entropy(logits, labels), tail, rtol=1e-5, atol=0)
    assert_close(el2n(logits, labels), math.sqrt(2) * tail, rtol=1e-5, atol=0)
    assert_close(entropy(logits, labels), (leads + 1) * tail, rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [1e4, 3e38])
def test_extreme_logits_are_finite(size):
    logits = torch.tensor([[size, -size, 0.0], [-size, size, 0.0], [size, size, size]])
    scores = all_scores(logits, torch.tensor([0, 0, 0]))
    assert all(score.isfinite().all() for score in scores.values())
    assert scores["loss"][0] == 0 and not torch.signbit(scores["loss"][0])
    assert_close(scores["loss"][1], torch.tensor(min(2 * size, torch.finfo(torch.float32).max)))
    assert_close(scores["el2n"], torch.tensor([0.0, math.sqrt(2), math.sqrt(6) / 3]))
    assert_close(scores["margin"], torch.tensor([-1.0, 1.0, 0.0]))
    assert_close(scores["entropy"], torch.tensor([0.0, 0.0, math.log(3)]))


def test_nan_logits_are_not_hidden():
    logits = torch.tensor([[math.nan, 0.0], [0.0, math.nan], [math.inf, 0.0], [0.0, 0.0]])
    scores = all_scores(logits, torch.zeros(4, dtype=torch.int64))
    for name in ("loss", "el2n", "margin", "entropy"):
        assert scores[name].isnan().tolist() == [True, True, True, False]
    # A class that the network rules out is no fault, unless it is the label.
    ruled_out = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]])
    scores = all_scores(ruled_out, torch.tensor([0, 0]))
    assert scores["loss"].tolist() == [0, math.inf] and scores["entropy"].tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    logits = torch.randn(20, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.arange(20) % 7
    for score in SCORES:
        assert score(logits, labels).dtype == torch.float32
        assert torch.equal(score(logits, labels), score(logits.float(), labels))


def test_float64_stays_float64():
    # float32 knows no difference between these two rows.
    logits = torch.tensor([[1.0, 0.0], [1.0 + 1e-12, 0.0]], dtype=torch.float64)
    loss = cross_entropy(logits, torch.tensor([0, 0], dtype=torch.int32))
    assert loss.dtype == torch.float64 and loss[1] < loss[0]


def test_grand_is_the_gradient_of_the_last_layer_whatever_the_batch():
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(10, 5, generator=generator)
    labels = torch.randint(3, (10,), generator=generator)
    layer = torch.nn.Linear(5, 3)
    expected = []
    for e, y in zip(embedding, labels, strict=True):
        loss = torch.nn.functional.cross_entropy(layer(e[None]), y[None])
        gradients = torch.autograd.grad(loss, list(layer.parameters()))
        expected.append(torch.cat([gradient.flatten() for gradient in gradients]).norm())
    with torch.no_grad():
        # The last of the batches of 4 has 2 samples.
        batches = zip(embedding.split(4), labels.split(4), strict=True)
        scores = [grand_last_layer(layer(e), y, e) for e, y in batches]
    assert [len(score) for score in scores] == [4, 4, 2]
    assert_close(torch.cat(scores), torch.stack(expected))


def test_one_class():
    scores = all_scores(torch.tensor([[2.0], [-3.0]]), torch.tensor([0, 0]))
    assert {name: score.tolist() for name, score in scores.items()} == {
        "loss": [0, 0],
        "el2n": [0, 0],
        "margin": [-1, -1],
        "entropy": [0, 0],
        "correct": [True, True],
    }


def test_no_samples():
    scores = all_scores(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert all(score.shape == (0,) for score in scores.values())


@pytest.mark.parametrize("score", [*SCORES, is_correct, all_scores])
@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), "shape"),
        (torch.zeros(3, 0), torch.zeros(3, dtype=torch.int64), "C >= 1"),
        (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), "floating"),
        (torch.zeros(3, 2), torch.zeros(3), "integers"),
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.bool), "integers"),
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), "B = 3"),
        (torch.zeros(3, 2), torch.zeros(3, 1, dtype=torch.int64), "B = 3"),
        (torch.zeros(3, 2), torch.tensor([0, 1, 2]), r"0\.\.1, got 2"),
        (torch.zeros(3, 2), torch.tensor([0, 1, -1]), r"0\.\.1, got -1"),
    ],
)
def test_wrong_input_is_refused(score, logits, labels, message):
    with pytest.raises(ValueError, match=message):
        score(logits, labels)


@pytest.mark.parametrize("embedding", [torch.zeros(3), torch.zeros(2, 4), torch.zeros(3, 4, dtype=torch.int64)])
def test_wrong_embedding_is_refused(embedding):
    with pytest.raises(ValueError, match="B = 3"):
        grand_last_layer(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), embedding)
