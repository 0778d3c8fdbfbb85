"""How hard each sample is: from the logits of one forward pass and the labels to one number per sample.

Every score is higher for a harder sample. Scores are computed in float32 (float64 if the logits are), whatever
precision the network ran in. A logit that is NaN gives scores that are NaN, so that the caller can quarantine the
sample.

Easy samples have p_y so close to 1 that float32 rounds it to 1. So that their scores still differ, nothing is computed
as 1 - p_y: the probabilities of the other classes add up to it without cancellation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from razor_ray.transforms import on_device


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Cross-entropy of each sample, :math:`-\ln p_y`.

    Parameters
    ----------
    logits : Tensor of shape (B, C)
        Floating; bfloat16 and float16 are computed in float32.
    labels : Tensor of shape (B,)
        Integers in 0..C-1.

    Returns
    -------
    Tensor of shape (B,)
        In nats, at least 0, finite for finite logits.

    Raises
    ------
    ValueError
        If shapes, types or labels are not as above.

    Examples
    --------
    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([0]))
    tensor([0.6931])
    """
    log_probabilities, labels = _prepare(logits, labels)
    return _cross_entropy(log_probabilities, labels)


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Norm of the error of each sample, :math:`\lVert p - y \rVert_2` with y one-hot.

    Parameters
    ----------
    logits : Tensor of shape (B, C)
        Floating; bfloat16 and float16 are computed in float32.
    labels : Tensor of shape (B,)
        Integers in 0..C-1.

    Returns
    -------
    Tensor of shape (B,)
        Between 0 and :math:`\sqrt 2`.

    Raises
    ------
    ValueError
        If shapes, types or labels are not as above.

    References
    ----------
    Paul et al., Deep Learning on a Data Diet, NeurIPS 2021.
    """
    log_probabilities, labels = _prepare(logits, labels)
    return _el2n(_others(log_probabilities, labels))


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Lead of the best wrong class over the right one, :math:`\max_{k \ne y} p_k - p_y`.

    Parameters
    ----------
    logits : Tensor of shape (B, C)
        Floating; bfloat16 and float16 are computed in float32. With C = 1 there is no wrong class, and the margin is
        :math:`-p_y = -1`.
    labels : Tensor of shape (B,)
        Integers in 0..C-1.

    Returns
    -------
    Tensor of shape (B,)
        Between -1 (sure and right) and 1 (sure and wrong).

    Raises
    ------
    ValueError
        If shapes, types or labels are not as above.
    """
    log_probabilities, labels = _prepare(logits, labels)
    return _margin(log_probabilities, labels, _others(log_probabilities, labels))


def entropy(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Entropy of the prediction for each sample, :math:`-\sum_k p_k \ln p_k`; the labels do not change it.

    Parameters
    ----------
    logits : Tensor of shape (B, C)
        Floating; bfloat16 and float16 are computed in float32.
    labels : Tensor of shape (B,)
        Integers in 0..C-1; checked only, so that all scores are called alike.

    Returns
    -------
    Tensor of shape (B,)
        In nats, between 0 and :math:`\ln C`.

    Raises
    ------
    ValueError
        If shapes, types or labels are not as above.
    """
    log_probabilities, _ = _prepare(logits, labels)
    return _entropy(log_probabilities)


def grand_last_layer(logits: Tensor, labels: Tensor, embedding: Tensor) -> Tensor:
    r"""Norm of the gradient of each sample's loss in the last layer (GraNd).

    It is :math:`\lVert p - y \rVert_2 \sqrt{\lVert e \rVert_2^2 + 1}`. The layer is linear with a bias,
    logits = W e + b: its gradient is the outer product of p - y and (e, 1). Each sample has its own gradient, so the
    score does not depend on the batch or on its size. It says nothing of a network that was not trained.

    Parameters
    ----------
    logits : Tensor of shape (B, C)
        Floating; bfloat16 and float16 are computed in float32.
    labels : Tensor of shape (B,)
        Integers in 0..C-1.
    embedding : Tensor of shape (B, D)
        Floating, the input of the last layer.

    Returns
    -------
    Tensor of shape (B,)
        At least 0.

    Raises
    ------
    ValueError
        If shapes, types or labels are not as above.

    References
    ----------
    Paul et al., Deep Learning on a Data Diet, NeurIPS 2021.
    """
    log_probabilities, labels = _prepare(logits, labels)
    if embedding.ndim != 2 or len(embedding) != len(logits) or not embedding.is_floating_point():
        raise ValueError(
            f"embedding must be floating and of shape (B, D) with B = {len(logits)} as for the logits, "
            f"got {embedding.dtype} of shape {tuple(embedding.shape)}."
        )
    embedding = embedding.to(log_probabilities.dtype)
    length = torch.linalg.vector_norm(embedding, dim=1)  # (B,)
    return _el2n(_others(log_probabilities, labels)) * torch.hypot(length, torch.ones_like(length))


def is_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the class with the largest logit is the label; of equal logits the first class wins.

    Parameters
    ----------
    logits : Tensor of shape (B, C)
        Floating.
    labels : Tensor of shape (B,)
        Integers in 0..C-1.

    Returns
    -------
    Tensor of shape (B,)
        Boolean.

    Raises
    ------
    ValueError
        If shapes, types or labels are not as above.
    """
    _check(logits, labels)
    return _is_correct(logits, labels)


def all_scores(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Every score that needs only logits and labels, from one softmax.

    Parameters
    ----------
    logits : Tensor of shape (B, C)
        Floating; bfloat16 and float16 are computed in float32.
    labels : Tensor of shape (B,)
        Integers in 0..C-1, with the logits or on the CPU. (Those on a GPU are waited for, since they are checked.)

    Returns
    -------
    dict
        `loss`, `el2n`, `margin`, `entropy` and `correct`, each a Tensor of shape (B,), as from the functions of this
        module.

    Raises
    ------
    ValueError
        If shapes, types or labels are not as above.
    """
    log_probabilities, labels = _prepare(logits, labels)
    others = _others(log_probabilities, labels)
    return {
        "loss": _cross_entropy(log_probabilities, labels),
        "el2n": _el2n(others),
        "margin": _margin(log_probabilities, labels, others),
        "entropy": _entropy(log_probabilities),
        "correct": _is_correct(logits, labels),
    }


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] < 1 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating and of shape (B, C) with C >= 1, got {logits.dtype} of shape "
            f"{tuple(logits.shape)}."
        )
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers, got {labels.dtype}.")
    if labels.shape != logits.shape[:1]:
        raise ValueError(
            f"labels must be of shape (B,) with B = {len(logits)} as for the logits, got {tuple(labels.shape)}."
        )
    if not len(labels):
        return
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= logits.shape[1]:
        raise ValueError(
            f"labels must be in 0..{logits.shape[1] - 1}, got {lowest if lowest < 0 else highest}: the network has "
            f"{logits.shape[1]} outputs. Quarantine such samples, or use a network with more outputs."
        )


def _prepare(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Checked input as log-probabilities of shape (B, C) and int64 labels of shape (B,)."""
    _check(logits, labels)
    labels = on_device(labels, logits.device).long()
    return _log_softmax(logits if logits.dtype == torch.float64 else logits.float()), labels


def _log_softmax(logits: Tensor) -> Tensor:
    """Logarithms of the probabilities, all to full relative precision, of shape (B, C).

    torch's rounds the largest to a multiple of 1e-7 in float32: it adds up 1 and the small terms. Here the 1 is left to
    log1p.
    """
    top = logits.argmax(dim=1, keepdim=True)  # (B, 1)
    shifted = logits - logits.gather(1, top)  # (B, C)
    # Two finite logits may lie further apart than the largest float: the loss is then that float, not infinite.
    shifted = torch.where(logits.isfinite(), shifted.clamp_min(torch.finfo(logits.dtype).min), shifted)
    small = shifted.exp().scatter(1, top, 0.0).sum(dim=1, keepdim=True)  # (B, 1)
    return shifted - torch.log1p(small)


def _others(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Probabilities of shape (B, C), with 0 in place of the label's."""
    probabilities = log_probabilities.exp()
    # Times 0 rather than plain 0: a NaN in the label's place stays.
    return probabilities.scatter(1, labels[:, None], _of_label(probabilities, labels)[:, None] * 0)


def _of_label(values: Tensor, labels: Tensor) -> Tensor:
    """The label's column of each sample, of shape (B,)."""
    return values.gather(1, labels[:, None]).squeeze(1)


def _cross_entropy(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    return _of_label(log_probabilities, labels).neg() + 0.0  # -0 + 0 is 0


def _el2n(others: Tensor) -> Tensor:
    rest = others.sum(dim=1).clamp_max(1)  # (B,), 1 - p_y
    return torch.hypot(rest, torch.linalg.vector_norm(others, dim=1)).clamp_max(math.sqrt(2))


def _margin(log_probabilities: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    return others.amax(dim=1) - _of_label(log_probabilities, labels).exp()


def _entropy(log_probabilities: Tensor) -> Tensor:
    probabilities = log_probabilities.exp()
    # p ln p is 0 at p = 0, also where ln p is -inf.
    terms = torch.where(probabilities == 0, 0, probabilities * log_probabilities)  # (B, C)
    return (-terms.sum(dim=1)).clamp_min(0) + 0.0


def _is_correct(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(dim=1) == labels
