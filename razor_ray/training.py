"""Supervised training in plain torch: optimiser, learning rate, loss, and the metrics of an evaluation."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from razor_ray.config import TrainConfig

_WARM_UP = 0.25
"""Share of the steps in which the learning rate rises."""


def choose_batch_size(num_samples: int) -> int:
    """Samples per step that leave about fifty steps in an epoch: a power of two in 32..128.

    >>> choose_batch_size(400), choose_batch_size(3500), choose_batch_size(1_281_167)
    (32, 64, 128)
    """
    return int(min(max(2 ** int(math.log2(max(num_samples / 50, 1))), 32), 128))


def choose_learning_rate(optimizer: str, arch: str, batch_size: int) -> float:
    """Peak learning rate: 0.001 for Adam and AdamW; for SGD in proportion to the batch (Goyal et al. 2017)."""
    if optimizer != "sgd":
        return 1e-3
    per_128 = 0.2 if arch == "resnet9" else 0.05
    return per_128 * batch_size / 128


def make_optimizer(network: nn.Module, config: TrainConfig, learning_rate: float) -> torch.optim.Optimizer:
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


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross-entropy of a batch, weighted and normalised by the batch's sum of weights.

    Parameters
    ----------
    logits : Tensor of shape (B, C)
    labels : Tensor of shape (B,)
        -1 for rows to leave out.
    weights : Tensor of shape (B,)
        Not negative.
    label_smoothing : float

    Returns
    -------
    Tensor of shape ()
        0, with a gradient of 0, if every weight is 0.
    """
    each = nn.functional.cross_entropy(
        logits.float(), labels, ignore_index=-1, reduction="none", label_smoothing=label_smoothing
    )  # (B,)
    weights = weights * (labels >= 0)
    return (each * weights).sum() / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)


def confusion_matrix(labels: Tensor, predicted: Tensor, num_classes: int) -> NDArray[np.int64]:
    """Counts of (true, predicted) pairs, shape (C, C); rows labelled -1 are left out."""
    known = labels >= 0
    pairs = labels[known].long() * num_classes + predicted[known].long()
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes).cpu().numpy()


def classification_metrics(confusion: NDArray[np.int64]) -> dict[str, Any]:
    """Accuracy, macro F1 and recall of each class.

    Parameters
    ----------
    confusion : ndarray of shape (C, C)
        Rows are true classes.

    Returns
    -------
    dict
        'accuracy', 'macro_f1' (over the classes that have samples), 'worst_recall', and 'recall', a list of C numbers,
        None where a class has no sample.

    Examples
    --------
    >>> classification_metrics(np.array([[3, 1], [0, 4]]))["recall"]
    [0.75, 1.0]
    """
    correct = np.diag(confusion).astype(np.float64)  # (C,)
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)  # (C,), (C,)
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
        "worst_recall": float(recall.min()),
        "recall": [None if np.isnan(value) else float(value) for value in by_class],
    }
