"""Supervised training in plain torch: optimiser, learning rate, loss, and the metrics of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from razor_ray import transforms
from razor_ray.config import LearningConfig

_EVAL_BATCH = 256
_WARM_UP = 0.25
"""Share of the steps in which the learning rate rises."""
_STEPS_FOR_FULL_RATE = 3000
"""Of resnet9."""


def choose_batch_size(num_samples: int) -> int:
    """Samples per step that leave about fifty steps in an epoch: a power of two in 32..128.

    >>> choose_batch_size(400), choose_batch_size(3500), choose_batch_size(1_281_167)
    (32, 64, 128)
    """
    return int(min(max(2 ** int(math.log2(max(num_samples / 50, 1))), 32), 128))


def choose_learning_rate(optimizer: str, arch: str, batch_size: int, num_steps: int) -> float:
    """Peak learning rate: 0.001 for Adam and AdamW; for SGD 0.05, or 0.2 for resnet9, times batch size / 128.

    That of resnet9 suits long trainings. Few steps are too few to come down from so high a rate: up to 3,000 it is in
    proportion to their number, but no lower than a tenth. Ours (docs/experiments.md, "The learning rate").

    Parameters
    ----------
    optimizer : {'sgd', 'adam', 'adamw'}
    arch : str
    batch_size : int
        Of all workers together.
    num_steps : int
        Of the whole training.

    References
    ----------
    Goyal et al., Accurate, Large Minibatch SGD, 2017, for the proportion to the batch.

    Examples
    --------
    >>> [round(choose_learning_rate("sgd", "resnet9", 128, steps), 3) for steps in (100, 1500, 9000)]
    [0.02, 0.1, 0.2]
    """
    if optimizer != "sgd":
        return 1e-3
    per_128 = 0.2 * min(max(num_steps / _STEPS_FOR_FULL_RATE, 0.1), 1.0) if arch == "resnet9" else 0.05
    return per_128 * batch_size / 128


def make_optimizer(network: nn.Module, config: LearningConfig, learning_rate: float) -> torch.optim.Optimizer:
    """The optimiser of a configuration; biases and normalisation (vectors, all of them) are not decayed."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=learning_rate)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True)


def learning_rate_factor(schedule: Literal["one_cycle", "cosine", "constant"], progress: float) -> float:
    """Share of the peak learning rate at a point of the training.

    Parameters
    ----------
    schedule : str
        'one_cycle' rises in the first quarter and falls to 0, both linearly; 'cosine' falls from the start.
    progress : float
        Share of all steps that are done, in [0, 1].

    Examples
    --------
    >>> [learning_rate_factor("one_cycle", p) for p in (0.0, 0.125, 0.25, 0.625, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return progress / _WARM_UP if progress < _WARM_UP else (1 - progress) / (1 - _WARM_UP)


class Trainer:
    """Steps of a training: crop, forward, loss, backward, update.

    Parameters
    ----------
    network : Module
        To call; that of `optimizer`, possibly wrapped.
    optimizer : Optimizer
    config : LearningConfig
    learning_rate : float
        At the peak of the schedule.
    image_size : int
        Side in pixels of what the network sees.
    precision : {'float32', 'bf16'}
    device : device
    num_workers : int
        That step together.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: LearningConfig,
        *,
        learning_rate: float,
        image_size: int,
        precision: str,
        device: torch.device,
        num_workers: int = 1,
    ) -> None:
        self.network, self.optimizer, self.config = network, optimizer, config
        self.learning_rate, self.image_size = learning_rate, image_size
        self.precision, self.device, self.num_workers = precision, device, num_workers

    def step(
        self, pixels: Tensor, labels: Tensor, weights: Tensor, progress: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Learn from one batch.

        On a GPU this returns before the step is done, so that the next batch is made ready meanwhile.

        Parameters
        ----------
        pixels : Tensor of shape (B, H, H, 3), uint8
            At least as large as the network's input.
        labels : Tensor of shape (B,)
            -1 for rows to leave out.
        weights : Tensor of shape (B,)
        progress : float
            Share of all steps that are done.
        generator : Generator
            Decides the crops.

        Returns
        -------
        (Tensor of shape (), Tensor of shape (B, C))
            The loss in float64 and the logits, on the device: who reads them waits for the step.
        """
        rate = self.learning_rate * learning_rate_factor(self.config.schedule, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # A batch without weight teaches nothing, but momentum, decay and the statistics of batch normalisation would
        # still move the network. Of several workers, who step together, some have weight.
        teaches = self.num_workers > 1 or bool((weights * (labels >= 0)).any())
        pixels, labels, weights = (transforms.on_device(values, self.device) for values in (pixels, labels, weights))
        if self.config.augment != "none":
            pixels = transforms.random_crop(pixels, self.image_size, generator, flip=self.config.augment == "crop_flip")
        pixels = transforms.normalize(pixels)
        if not teaches:
            self.network.eval()
            with torch.no_grad(), autocast(self.device, self.precision):
                logits = self.network(pixels)
            self.network.train()
            return torch.zeros((), dtype=torch.float64, device=self.device), logits
        with autocast(self.device, self.precision):
            logits = self.network(pixels)
        loss = weighted_loss(logits, labels, weights, self.config.label_smoothing, self._mean_weight(labels, weights))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach().double(), logits.detach()

    def _mean_weight(self, labels: Tensor, weights: Tensor) -> Tensor:
        """The batch's sum of weights; of several workers the mean of theirs.

        Workers' gradients are averaged: with this a sample weighs the same whichever worker it came to.
        """
        total = (weights * (labels >= 0)).sum()
        if self.num_workers > 1:
            torch.distributed.all_reduce(total)
        return total / self.num_workers


class Checkpoint(Protocol):
    """Where a training keeps its state, to go on from when it is begun again."""

    def load(self) -> dict[str, Any] | None:
        """The state that was saved last, on the CPU; None if there is none."""
        ...

    def save(self, state: dict[str, Any]) -> None:
        """Keep a state, or leave it at an earlier one."""
        ...


def fit(
    network: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    config: LearningConfig,
    *,
    arch: str,
    image_size: int,
    num_steps: int,
    seed: int,
    device: torch.device,
    rows: Tensor | None = None,
    checkpoint: Checkpoint | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Train a network on images that are in memory, a step whenever the next item is asked for.

    Parameters
    ----------
    network : Module
        On the device.
    pixels : Tensor of shape (N, H, H, 3), uint8
    labels : Tensor of shape (N,)
    config : LearningConfig
        Its `epochs` are not looked at.
    arch : str
        What the network is, for the learning rate.
    image_size : int
    num_steps : int
        Every pass over the images is a permutation of its own, cut into even batches.
    seed : int
        Of permutations and crops.
    device : device
    rows : Tensor of shape (K,), int64, optional
        Which of the images to train on; without it all of them.
    checkpoint : Checkpoint, optional
        To go on from, after the pass over the images that it holds. The steps are then those that there would have been
        without the interruption, bit for bit on a CPU.

    Yields
    ------
    (int, Tensor of shape ())
        After each step its number, from 1 on, and the mean loss over the pass so far, on the device: who reads it waits
        for the step.
    """
    rows = torch.arange(len(labels)) if rows is None else rows
    batch_size = choose_batch_size(len(rows)) if config.batch_size == "auto" else config.batch_size
    rate = config.learning_rate
    rate = choose_learning_rate(config.optimizer, arch, batch_size, num_steps) if rate == "auto" else rate
    precision = choose_precision(config.precision, device)
    optimizer = make_optimizer(network, config, rate)
    trainer = Trainer(
        network,
        optimizer,
        config,
        learning_rate=rate,
        image_size=image_size,
        precision=precision,
        device=device,
    )
    generator = torch.Generator().manual_seed(seed)
    step = 0
    if checkpoint and (state := checkpoint.load()):
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        _set_random_state(state["random"], device)
        step = state["step"]
    network.train()
    while step < num_steps:
        total = torch.zeros((), dtype=torch.float64, device=device)
        shuffled = rows[torch.randperm(len(rows), generator=generator)]
        for number, batch in enumerate(shuffled.tensor_split(-(-len(rows) // batch_size)), 1):
            # `index_select` copies images ten times as fast as an index in brackets.
            taken, weights = pixels.index_select(0, batch), torch.ones(len(batch))
            loss, _ = trainer.step(taken, labels[batch], weights, step / num_steps, generator)
            total = total + loss
            step += 1
            yield step, total / number
            if step == num_steps:
                return
        if checkpoint:
            checkpoint.save(
                {
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "generator": generator.get_state(),
                    "random": _random_state(device),
                    "step": step,
                }
            )


def _random_state(device: torch.device) -> list[Tensor]:
    """Of what networks draw from when they drop something out: the CPU's, and that of a GPU."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def _set_random_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def predict(network: nn.Module, pixels: Tensor, *, precision: str, device: torch.device) -> Tensor:
    """Classes that a network predicts.

    Parameters
    ----------
    network : Module
        On the device; left in evaluation mode.
    pixels : Tensor of shape (N, S, S, 3), uint8
    precision : {'float32', 'bf16'}
    device : device

    Returns
    -------
    Tensor of shape (N,)
        On the CPU.
    """
    network.eval()
    with torch.inference_mode(), autocast(device, precision):
        found = [network(transforms.normalize(batch.to(device))).argmax(1).cpu() for batch in pixels.split(_EVAL_BATCH)]
    return torch.cat(found)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 where it is asked for."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def choose_precision(precision: str, device: torch.device, *, gpus_have_bf16: bool = True) -> str:
    """'auto' resolved: bf16 on what multiplies it natively; elsewhere it is emulated, and slow."""
    if precision != "auto":
        return precision
    return "bf16" if (gpus_have_bf16 if device.type == "cuda" else _cpu_has_bf16()) else "float32"


def _cpu_has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def weighted_loss(
    logits: Tensor, labels: Tensor, weights: Tensor, label_smoothing: float, total: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of a batch, weighted and normalised by a sum of weights.

    Parameters
    ----------
    logits : Tensor of shape (B, C)
    labels : Tensor of shape (B,)
        -1 for rows to leave out.
    weights : Tensor of shape (B,)
        Not negative.
    label_smoothing : float
    total : Tensor of shape (), optional
        The sum of weights; without it the batch's.

    Returns
    -------
    Tensor of shape ()
        0, with a gradient of 0, if every weight is 0.
    """
    each = nn.functional.cross_entropy(
        logits.float(), labels, ignore_index=-1, reduction="none", label_smoothing=label_smoothing
    )  # (B,)
    weights = weights * (labels >= 0)
    total = weights.sum() if total is None else total
    return (each * weights).sum() / total.clamp(min=torch.finfo(torch.float32).tiny)


def class_counts(labels: Tensor, predicted: Tensor, num_classes: int) -> NDArray[np.int64]:
    """Count, for each class, samples that are of it, that are taken for it, and both; counts of parts add up.

    It is all that the metrics need of a confusion matrix, which for very many classes no memory holds.

    Parameters
    ----------
    labels, predicted : Tensor of shape (B,)
        In 0..C-1. Rows labelled -1 are left out.
    num_classes : int

    Returns
    -------
    ndarray of shape (3, C)
        True, predicted, and correct.
    """
    known = labels >= 0
    labels, predicted = labels[known].long(), predicted[known].long()
    counted = (labels, predicted, labels[labels == predicted])
    return torch.stack([torch.bincount(each, minlength=num_classes) for each in counted]).cpu().numpy()


def classification_metrics(counts: NDArray[np.int64]) -> dict[str, Any]:
    """Accuracy, macro F1 and recall of each class.

    Parameters
    ----------
    counts : ndarray of shape (3, C)
        Of `class_counts`.

    Returns
    -------
    dict
        'accuracy', 'macro_f1' and 'macro_recall' (over the classes that have samples), 'worst_recall', and 'recall', a
        list of C numbers, None where a class has no sample.

    Examples
    --------
    >>> classification_metrics(np.array([[4, 4], [3, 5], [3, 4]]))["recall"]
    [0.75, 1.0]
    """
    true, predicted, correct = counts  # (C,) each
    present = true > 0
    if not present.any():
        raise ValueError("there is no labelled image to evaluate on.")
    recall = correct[present] / true[present]
    f1 = 2 * correct[present] / (true[present] + predicted[present])
    by_class = np.full(len(true), np.nan)
    by_class[present] = recall
    return {
        "accuracy": float(correct.sum() / true.sum()),
        "macro_f1": float(f1.mean()),
        "macro_recall": float(recall.mean()),
        "worst_recall": float(recall.min()),
        "recall": [None if np.isnan(value) else float(value) for value in by_class],
    }
