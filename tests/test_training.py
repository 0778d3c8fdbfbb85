"""Supervised training: loss, learning rate, optimiser and metrics against numbers by hand and scikit-learn."""

from __future__ import annotations

import copy
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import accuracy_score, f1_score, recall_score
from torch import nn

from razor_ray import model, training, transforms
from razor_ray.config import InputConfig, TrainConfig
from razor_ray.training import (
    Trainer,
    choose_batch_size,
    choose_learning_rate,
    choose_precision,
    class_counts,
    classification_metrics,
    fit,
    learning_rate_factor,
    make_optimizer,
    predict,
    weighted_loss,
)

seeded = settings(deadline=None, derandomize=True, max_examples=100)


def config(**changes) -> TrainConfig:
    return TrainConfig(input=InputConfig(path="in"), output="out", **changes)


# Metrics.


def test_metrics_by_hand():
    # Class 0: 3 of 4 found, 5 predicted: F1 = 2 * 3 / (4 + 5). Class 1: 4 of 7, 5 predicted. Class 2 has no sample,
    # 1 predicted.
    got = classification_metrics(np.array([[4, 7, 0], [5, 5, 1], [3, 4, 0]]))
    assert got["accuracy"] == 7 / 11
    assert got["recall"] == [3 / 4, 4 / 7, None]
    assert_allclose(got["macro_f1"], (6 / 9 + 8 / 12) / 2)
    assert got["worst_recall"] == 4 / 7


def test_metrics_of_a_model_that_knows_nothing():
    got = classification_metrics(np.array([[5, 5], [5, 5], [0, 0]]))
    assert (got["accuracy"], got["macro_f1"], got["worst_recall"], got["recall"]) == (0, 0, 0, [0, 0])


def test_metrics_without_a_sample():
    with pytest.raises(ValueError, match="no labelled image to evaluate on"):
        classification_metrics(np.zeros((3, 3), np.int64))


pairs = st.integers(2, 6).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        st.lists(st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)), min_size=1, max_size=60),
    )
)


@seeded
@given(pairs)
def test_metrics_are_scikit_learns(drawn):
    num_classes, rows = drawn
    true, predicted = np.array(rows).T  # (B,), (B,)
    counts = class_counts(torch.from_numpy(true), torch.from_numpy(predicted), num_classes)
    assert counts.sum(axis=1).tolist() == [len(true), len(true), (true == predicted).sum()]
    got = classification_metrics(counts)
    present = np.unique(true)
    options = {"labels": present, "average": None, "zero_division": 0}
    recall = recall_score(true, predicted, **options)
    assert_allclose(got["accuracy"], accuracy_score(true, predicted))
    assert_allclose([got["recall"][label] for label in present], recall)
    assert_allclose(got["macro_f1"], f1_score(true, predicted, **options).mean())
    assert_allclose(got["worst_recall"], recall.min())
    assert [label for label in range(num_classes) if got["recall"][label] is None] == sorted(
        set(range(num_classes)) - set(present.tolist())
    )


def test_counts_of_classes_by_hand():
    true, predicted = torch.tensor([0, 0, 1, 2, -1, 2, -1]), torch.tensor([0, 1, 1, 0, 2, 2, 0])
    expected = [[2, 1, 2], [2, 2, 1], [1, 1, 1]]
    assert_array_equal(class_counts(true, predicted, 3), expected)
    assert_array_equal(class_counts(true.int(), predicted, 3), expected)
    assert_array_equal(class_counts(true[:3], predicted[:3], 3) + class_counts(true[3:], predicted[3:], 3), expected)
    assert_array_equal(class_counts(torch.tensor([-1, -1]), torch.tensor([0, 1]), 2), np.zeros((3, 2)))


def test_counts_of_very_many_classes():
    # A matrix of these would have ten thousand million numbers.
    labels = torch.tensor([99_999, 99_998], dtype=torch.int32)
    counts = class_counts(labels, torch.tensor([99_998, 99_998]), 100_000)
    assert counts.shape == (3, 100_000)
    assert_array_equal(counts[:, -2:], [[1, 1], [2, 0], [1, 0]])
    assert counts.sum() == 5


# Loss.


def loss_by_hand(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, smoothing: float) -> float:
    """In float64, sample by sample."""
    total = mass = 0.0
    for row, label, weight in zip(logits.astype(np.float64), labels, weights.astype(np.float64), strict=True):
        if label < 0:
            continue
        log_p = row - row.max() - math.log(np.exp(row - row.max()).sum())
        target = np.full(len(row), smoothing / len(row))
        target[label] += 1 - smoothing
        total += weight * -(target * log_p).sum()
        mass += weight
    return total / mass if mass else 0.0


def test_loss_hand_worked():
    # Even logits over 4 classes: ln 4, whatever the weights.
    logits, labels = torch.zeros(3, 4), torch.tensor([0, 3, -1])
    assert_allclose(weighted_loss(logits, labels, torch.tensor([1.0, 5, 9]), 0.0), math.log(4), rtol=1e-6)
    # p = (3/4, 1/4): -ln 3/4 and -ln 1/4, weighed 1 to 3.
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
    got = weighted_loss(logits, torch.tensor([0, 1]), torch.tensor([1.0, 3.0]), 0.0)
    assert_allclose(got, (math.log(4 / 3) + 3 * math.log(4)) / 4, rtol=1e-6)


@seeded
@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(2, 7), st.sampled_from([0.0, 0.1, 0.9]))
def test_loss_against_float64(seed, batch, num_classes, smoothing):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 5, (batch, num_classes)).astype(np.float32)
    labels = rng.integers(-1, num_classes, batch)
    weights = (rng.random(batch) * 3).astype(np.float32) * rng.integers(0, 2, batch).astype(np.float32)
    got = weighted_loss(torch.from_numpy(logits), torch.from_numpy(labels), torch.from_numpy(weights), smoothing)
    assert_allclose(got, loss_by_hand(logits, labels, weights, smoothing), rtol=1e-5, atol=1e-6)


def test_weights_count_by_their_ratio_only():
    logits, labels = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    weights = torch.arange(8) / 4
    one = weighted_loss(logits, labels, weights, 0.1)
    torch.testing.assert_close(weighted_loss(logits, labels, weights * 1000, 0.1), one)
    torch.testing.assert_close(weighted_loss(logits, labels, weights / 1e6, 0.1), one)
    even = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(weighted_loss(logits, labels, torch.full((8,), 0.3), 0.1), even)


@pytest.mark.parametrize("labels", [[0, 1, 2], [-1, -1, -1], [0, -1, 2]])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_no_weight_is_no_loss(labels, scale):
    logits = (torch.eye(3) * scale).requires_grad_()
    weights = torch.tensor([0.0, 1.0, 0.0]) if labels == [0, -1, 2] else torch.zeros(3)
    loss = weighted_loss(logits, torch.tensor(labels), weights, 0.1)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.tolist() == [[0] * 3] * 3


def test_rows_left_out_have_no_gradient():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weighted_loss(logits, torch.tensor([2, -1, 1]), torch.tensor([1.0, 1.0, 0.0]), 0.0).backward()
    assert logits.grad[0].abs().sum() > 0
    assert logits.grad[1:].abs().sum() == 0


def test_loss_of_half_precision_logits_is_float32():
    logits = torch.zeros(2, 4, dtype=torch.bfloat16)
    got = weighted_loss(logits, torch.tensor([0, 1]), torch.ones(2), 0.0)
    assert got.dtype == torch.float32
    assert_allclose(got, math.log(4), rtol=1e-6)


# Learning rate.


def test_factors_by_hand():
    points = (0.0, 0.125, 0.25, 0.625, 1.0)
    assert [learning_rate_factor("one_cycle", p) for p in points] == [0, 0.5, 1, 0.5, 0]
    assert [learning_rate_factor("constant", p) for p in points] == [1] * 5
    # Cosine: (1 + cos(pi p)) / 2, at 1/3 it is (1 + 1/2) / 2.
    points = (0.0, 1 / 3, 0.5, 2 / 3, 1.0)
    assert_allclose([learning_rate_factor("cosine", p) for p in points], [1, 0.75, 0.5, 0.25, 0], atol=1e-12)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
def test_factors_are_continuous_and_in_range(schedule):
    factors = np.array([learning_rate_factor(schedule, p) for p in np.linspace(0, 1, 1001)])
    assert factors.min() >= 0
    assert factors.max() == 1
    assert np.abs(np.diff(factors)).max() < 0.005  # 4 / 1000 is the steepest, in the warm-up
    peak = 250 if schedule == "one_cycle" else 0
    assert (np.diff(factors[peak:]) <= 0).all()
    assert (np.diff(factors[: peak + 1]) >= 0).all()


# Choices.


def test_batch_sizes_by_hand():
    # Of 50 steps: 1600 / 50 = 32, 3199 / 50 < 64 <= 3200 / 50, 6400 / 50 = 128.
    sizes = (0, 1, 100, 1599, 1600, 3199, 3200, 6399, 6400, 50_000, 10**9)
    assert [choose_batch_size(n) for n in sizes] == [32, 32, 32, 32, 32, 32, 64, 64, 128, 128, 128]


def test_learning_rates_by_hand():
    assert choose_learning_rate("sgd", "resnet9", 128, 3000) == 0.2
    assert choose_learning_rate("sgd", "resnet9", 32, 10**6) == 0.05
    assert choose_learning_rate("sgd", "resnet18", 256, 1) == choose_learning_rate("sgd", "resnet18", 256, 3000) == 0.1
    # Of few steps: in proportion, but no lower than a tenth.
    assert choose_learning_rate("sgd", "resnet9", 64, 790) == pytest.approx(0.1 * 790 / 3000)
    assert choose_learning_rate("sgd", "resnet9", 32, 300) == pytest.approx(0.005)
    assert choose_learning_rate("sgd", "resnet9", 32, 1) == pytest.approx(0.005)
    for optimizer in ("adam", "adamw"):
        assert choose_learning_rate(optimizer, "resnet9", 999, 10) == 0.001


def test_a_training_takes_the_rate_of_its_steps(monkeypatch):
    """Of all that it is to make, not of a pass."""
    asked = []
    monkeypatch.setattr(training, "choose_learning_rate", lambda *asked_for: asked.append(asked_for) or 0.1)
    pixels, labels = torch.zeros(100, 8, 8, 3, dtype=torch.uint8), torch.arange(100) % 2
    config = TrainConfig(input=InputConfig(path="in"), output="out", epochs=3, augment="none", precision="float32")
    sizes = {"arch": "resnet9", "image_size": 8, "num_steps": 12, "seed": 0, "device": torch.device("cpu")}
    list(fit(model.build("resnet9", 2), pixels, labels, config, **sizes))
    assert asked == [("sgd", "resnet9", 32, 12)]


# Optimiser.


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_optimizer_decays_matrices_only(name, kind):
    network = model.ResNet9(5)
    optimizer = make_optimizer(network, config(optimizer=name, weight_decay=0.01), 0.3)
    assert type(optimizer) is kind
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(network.parameters()))  # every one, and none twice
    for parameter_name, parameter in network.named_parameters():
        is_matrix = parameter_name.endswith("weight") and parameter.ndim in (2, 4)
        assert decay[id(parameter)] == (0.01 if is_matrix else 0.0), parameter_name
    assert {group["lr"] for group in optimizer.param_groups} == {0.3}
    if name == "sgd":
        assert {(group["momentum"], group["nesterov"]) for group in optimizer.param_groups} == {(0.9, True)}


def test_a_step_by_hand():
    # Gradient 0: only the decay moves a weight, by lr * decay * w (times 1 + momentum, for Nesterov); the bias stays.
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, 2.0)
    nn.init.constant_(layer.bias, 3.0)
    optimizer = make_optimizer(layer, config(optimizer="sgd", weight_decay=0.5), 0.1)
    layer.weight.grad, layer.bias.grad = torch.zeros(1, 1), torch.zeros(1)
    optimizer.step()
    assert_allclose(layer.weight.item(), 2 - 0.1 * 1.9 * 0.5 * 2, rtol=1e-6)
    assert layer.bias.item() == 3
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, 2.0)
    optimizer = make_optimizer(layer, config(optimizer="adamw", weight_decay=0.5), 0.1)
    layer.weight.grad, layer.bias.grad = torch.zeros(1, 1), torch.zeros(1)
    optimizer.step()
    assert_allclose(layer.weight.item(), 2 * (1 - 0.1 * 0.5), rtol=1e-6)


def test_a_frozen_network_without_matrices():
    # A group may be empty; the optimiser must still be there.
    optimizer = make_optimizer(nn.BatchNorm1d(3), config(), 0.1)
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 2]


def test_a_few_steps_learn():
    torch.manual_seed(0)
    network, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.randn(30, 3, 2, 2)
    labels = torch.arange(30) % 3
    images[:, 0, 0, 0] += labels * 3.0
    for name, rate in (("sgd", 0.1), ("adam", 0.05), ("adamw", 0.05)):
        optimizer = make_optimizer(network, config(optimizer=name), rate)
        first = weighted_loss(network(images), labels, torch.ones(30), 0.0).item()
        for _ in range(30):
            optimizer.zero_grad()
            weighted_loss(network(images), labels, torch.ones(30), 0.0).backward()
            optimizer.step()
        assert weighted_loss(network(images), labels, torch.ones(30), 0.0).item() < first


# Fitting what is in memory.


def trained(seed: int, num_steps: int, **changes) -> tuple[nn.Module, float]:
    """A small network on images whose brightness is their class."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 2, 80))
    pixels = (labels[:, None, None, None] * 200 + torch.from_numpy(rng.integers(0, 40, (80, 16, 16, 3)))).to(
        torch.uint8
    )
    torch.manual_seed(seed)
    network = model.build("lenet", 2)
    arguments = {"batch_size": 32, "augment": "none", "optimizer": "adam"} | changes
    *_, (_, loss) = fit(
        network,
        pixels,
        labels,
        config(**arguments),
        arch="lenet",
        image_size=16,
        num_steps=num_steps,
        seed=seed,
        device=torch.device("cpu"),
    )
    predicted = predict(network, pixels, precision="float32", device=torch.device("cpu"))
    assert predicted.shape == (80,)
    network.accuracy = (predicted == labels).float().mean()  # type: ignore[assignment]
    return network, loss


class Memory:
    """A checkpoint in memory, of which a training can be begun again."""

    def __init__(self) -> None:
        self.content: bytes | None = None

    def load(self):
        return None if self.content is None else torch.load(io.BytesIO(self.content), weights_only=True)

    def save(self, state):
        stream = io.BytesIO()
        torch.save(state, stream)
        self.content = stream.getvalue()


class Dropping(nn.Module):
    """Draws from torch's own generator, too, and has statistics that no gradient moves."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Dropout(0.3), nn.Flatten(), nn.LazyLinear(2)
        )

    def forward(self, images):
        return self.body(images)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("stop", [1, 3, 4, 7, 8])  # a pass is of three steps
def test_a_fit_that_is_begun_again_goes_on_as_if_it_had_not_been(optimizer, stop):
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (70, 18, 18, 3), np.uint8))
    labels = torch.from_numpy(rng.integers(0, 2, 70))

    def begin(checkpoint=None):
        torch.manual_seed(5)
        network = Dropping()
        network(torch.zeros(2, 3, 16, 16))  # makes the lazy layer
        chosen = config(optimizer=optimizer, batch_size=32, augment="crop_flip", schedule="cosine")
        steps = fit(
            network,
            pixels,
            labels,
            chosen,
            arch="lenet",
            image_size=16,
            num_steps=8,
            seed=3,
            device=torch.device("cpu"),
            checkpoint=checkpoint,
        )
        return network, steps

    whole, steps = begin()
    expected = list(steps)
    assert [step for step, _ in expected] == [1, 2, 3, 4, 5, 6, 7, 8]
    memory = Memory()
    _, steps = begin(memory)
    assert [next(steps) for _ in range(stop)] == expected[:stop]
    torch.rand(7)  # something else draws meanwhile
    network, steps = begin(memory)
    done = (stop - 1) // 3 * 3  # passes whose end was seen: when the next step was asked for
    assert list(steps) == expected[done:]
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), whole.state_dict().values(), strict=True)
    )


def test_fit_learns_and_its_seed_decides():
    network, loss = trained(0, 60)
    assert network.accuracy == 1.0
    assert loss < 0.1
    again, same = trained(0, 60)
    assert same == loss
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    assert trained(1, 5)[1] != trained(0, 5)[1]


def test_bf16_learns_too_and_rounds_as_bf16_does():
    network, loss = trained(0, 30, precision="bf16")
    assert network.accuracy == 1.0
    assert loss != trained(0, 30, precision="float32")[1]  # it is another arithmetic


@pytest.mark.parametrize(
    ("asked", "device", "cpu_has_bf16", "chosen"),
    [
        ("auto", "cuda", False, "bf16"),
        ("auto", "cpu", True, "bf16"),
        ("auto", "cpu", False, "float32"),
        ("float32", "cuda", True, "float32"),
        ("bf16", "cpu", False, "bf16"),
    ],
)
def test_bf16_is_chosen_where_it_is_fast(monkeypatch, asked, device, cpu_has_bf16, chosen):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: cpu_has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert choose_precision(asked, torch.device(device)) == chosen


def test_fit_makes_as_many_steps_as_asked(monkeypatch):
    from razor_ray import training

    steps = []
    step = training.Trainer.step

    def counted(self, pixels, labels, weights, progress, generator):
        steps.append((len(labels), progress))
        return step(self, pixels, labels, weights, progress, generator)

    monkeypatch.setattr(training.Trainer, "step", counted)
    trained(0, 7)
    # 80 images in even batches of at most 32 are 27, 27 and 26; the third pass stops after one.
    assert [size for size, _ in steps] == [27, 27, 26, 27, 27, 26, 27]
    assert_allclose([progress for _, progress in steps], np.arange(7) / 7)


def trainer_of(network, *, learning_rate=0.1, num_workers=1, **changes):
    """Steps of 16 x 16 images on the CPU."""
    settings_ = config(**({"augment": "none", "weight_decay": 0.1} | changes))
    optimizer = make_optimizer(network, settings_, learning_rate)
    return Trainer(
        network,
        optimizer,
        settings_,
        learning_rate=learning_rate,
        image_size=16,
        precision="float32",
        device=torch.device("cpu"),
        num_workers=num_workers,
    )


def test_a_step_is_made_at_the_rate_of_its_moment():
    torch.manual_seed(0)
    trainer = trainer_of(model.build("lenet", 2), schedule="one_cycle")
    pixels, labels = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    for progress, rate in ((0.0, 0.0), (0.125, 0.05), (0.25, 0.1), (0.625, 0.05), (1.0, 0.0)):
        trainer.step(pixels, labels, torch.ones(4), progress, torch.Generator())
        assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([rate] * 2)


@pytest.mark.parametrize(("augment", "flip"), [("none", None), ("crop", False), ("crop_flip", True)])
def test_images_are_cropped_and_flipped_as_asked(monkeypatch, augment, flip):
    seen = []
    crop = transforms.random_crop
    monkeypatch.setattr(transforms, "random_crop", lambda *given, flip: seen.append(flip) or crop(*given, flip=flip))
    torch.manual_seed(0)
    trainer = trainer_of(model.build("lenet", 2), augment=augment)
    pixels = torch.randint(0, 256, (4, 20, 20, 3), dtype=torch.uint8)
    trainer.step(pixels, torch.tensor([0, 1, 0, 1]), torch.ones(4), 0.5, torch.Generator())
    assert seen == ([] if flip is None else [flip])


def test_classes_are_predicted_by_the_statistics_that_were_gathered():
    torch.manual_seed(0)
    network = model.build("resnet9", 3)
    trainer = trainer_of(network)
    pixels = torch.randint(0, 256, (40, 16, 16, 3), dtype=torch.uint8)
    for _ in range(5):
        trainer.step(pixels, torch.arange(40) % 3, torch.ones(40), 0.5, torch.Generator())
    assert network.training
    found = predict(network, pixels, precision="float32", device=torch.device("cpu"))
    assert not network.training
    with torch.no_grad():
        one_by_one = torch.cat([network(transforms.normalize(image[None])).argmax(1) for image in pixels])
    assert torch.equal(found, one_by_one)  # of the statistics of one image there would be other ones


def test_a_sample_weighs_the_same_whichever_worker_it_comes_to(monkeypatch):
    """Two workers, whose gradients are averaged, step as one does with the images of both."""
    torch.manual_seed(0)
    network = model.build("lenet", 3)
    pixels = torch.randint(0, 256, (6, 16, 16, 3), dtype=torch.uint8)
    labels, weights = torch.tensor([0, 1, 2, 0, -1, 1]), torch.tensor([0.01, 3.0, 0.5, 10.0, 7.0, 0.0])

    def gradients(rows, num_workers=1, of_others=0.0):
        copy_ = copy.deepcopy(network)
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.add_(of_others))
        trainer = trainer_of(copy_, num_workers=num_workers)
        loss, _ = trainer.step(pixels[rows], labels[rows], weights[rows], 0.5, torch.Generator())
        return loss, [parameter.grad for parameter in copy_.parameters()]

    whole_loss, whole = gradients(slice(None))
    first_loss, first = gradients(slice(0, 3), 2, of_others=10.0)
    other_loss, other = gradients(slice(3, 6), 2, of_others=3.51)
    assert float(first_loss + other_loss) / 2 == pytest.approx(float(whole_loss), rel=1e-5)
    for mine, theirs, both in zip(first, other, whole, strict=True):
        torch.testing.assert_close((mine + theirs) / 2, both, rtol=1e-3, atol=1e-6)


def test_a_batch_without_weight_moves_no_statistics():
    torch.manual_seed(0)
    network = model.build("resnet9", 2)
    trainer = trainer_of(network)
    pixels, labels = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    trainer.step(pixels, labels, torch.ones(4), 0.5, torch.Generator())
    before = copy.deepcopy(network.state_dict())
    loss, logits = trainer.step(pixels, labels, torch.zeros(4), 0.5, torch.Generator())
    assert loss == 0.0 and logits.shape == (4, 2) and logits.isfinite().all()
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_batch_without_weight_moves_nothing():
    torch.manual_seed(0)
    network = model.build("lenet", 2)
    trainer = trainer_of(network)
    pixels = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0, -1])
    # A step first, so that there is momentum that could move it.
    trainer.step(pixels, labels, torch.ones(4), 0.5, torch.Generator())
    before = [parameter.clone() for parameter in network.parameters()]
    for weights in (torch.zeros(4), torch.tensor([0.0, 0.0, 0.0, 1.0])):  # the last row is left out anyway
        loss, logits = trainer.step(pixels, labels, weights, 0.5, torch.Generator())
        assert loss == 0.0
        assert logits.shape == (4, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    trainer.step(pixels, labels, torch.ones(4), 0.5, torch.Generator())
    assert not all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
