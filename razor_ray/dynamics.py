"""How samples fared while the proxy learned: scores from every epoch of its training, at no cost in forward passes.

A worker adds up what it sees of each sample, in memory that grows with its samples and not with epochs or classes.
Sums of several workers, and of a training that was interrupted, add up to the same.

Scores are of the batches that are trained on: augmented images, batch statistics, the weights of that step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from razor_ray.config import MAX_PROXY_EPOCHS
from razor_ray.schema import DYNAMICS_NAMES


@dataclass(slots=True)
class Dynamics:
    """Sums over the epochs so far, for each of n samples that at least one of them saw.

    All arrays have shape (n,).
    """

    sample_id: NDArray[np.int64]
    """Ascending."""
    count: NDArray[np.int64]
    """Epochs that saw the sample; at least 1."""
    el2n: NDArray[np.float64]
    p: NDArray[np.float64]
    """Of the predicted probability of the label."""
    p_squared: NDArray[np.float64]
    margin: NDArray[np.float64]
    """Of the label's logit less the largest other."""
    seen: NDArray[np.int64]
    """Bit e: epoch e (from 0) saw the sample."""
    correct: NDArray[np.int64]
    """Bit e: epoch e got it right."""

    @classmethod
    def of_epoch(
        cls,
        epoch: int,
        sample_id: NDArray[np.int64],
        *,
        el2n: NDArray[np.floating],
        p: NDArray[np.floating],
        margin: NDArray[np.floating],
        correct: NDArray[np.bool_],
    ) -> Dynamics:
        """What one epoch saw of some samples; without those whose step overflowed, which tells nothing of them.

        Parameters
        ----------
        epoch : int
            0..MAX_PROXY_EPOCHS - 1.
        sample_id : ndarray of shape (B,)
            In any order. Of a sample that was seen twice the first counts.
        el2n, p, margin, correct : ndarray of shape (B,)

        Raises
        ------
        ValueError
            If the epoch is out of range.
        """
        if not 0 <= epoch < MAX_PROXY_EPOCHS:
            raise ValueError(f"epoch must be in 0..{MAX_PROXY_EPOCHS - 1}, got {epoch}.")
        finite = np.flatnonzero(np.isfinite(el2n) & np.isfinite(p) & np.isfinite(margin))
        ids, first = np.unique(np.asarray(sample_id, np.int64)[finite], return_index=True)  # (n,)
        rows = finite[first]
        el2n, p, margin = (np.asarray(column, np.float64)[rows] for column in (el2n, p, margin))
        seen = np.full(len(ids), np.int64(1) << np.int64(epoch))
        return cls(
            sample_id=ids,
            count=np.ones(len(ids), np.int64),
            el2n=el2n,
            p=p,
            p_squared=np.square(p),
            margin=margin,
            seen=seen,
            correct=np.where(np.asarray(correct)[rows], seen, np.int64(0)),
        )

    def scores(self) -> dict[str, NDArray[np.float32]]:
        r"""Scores, all higher = harder but `mean_p`.

        Returns
        -------
        dict of ndarray of shape (n,)
            `mean_el2n`. `mean_p`: mean predicted probability of the label. `dyn_unc`: its standard deviation over the
            epochs (He et al. 2024, with one window). `dual`: that times 1 - `mean_p` (Cho et al. 2025, with one
            window). `aum`: mean of the largest other logit less the label's, the negative of Pleiss et al.'s (2020)
            area under the margin. `forgetting`: times that a sample was right and then wrong in the next epoch that
            saw it (Toneva et al. 2019); for one that was never right the number of epochs + 1, above all others.
        """
        mean_el2n, mean_p, margin = self.el2n / self.count, self.p / self.count, self.margin / self.count
        # Rounding may leave a little less than nothing.
        deviation = np.sqrt(np.maximum(self.p_squared / self.count - mean_p**2, 0.0))
        values = {
            "mean_el2n": mean_el2n,
            "mean_p": mean_p,
            "dyn_unc": deviation,
            "dual": deviation * (1 - mean_p),
            "aum": -margin,
            "forgetting": self._forgetting(),
        }
        return {name: values[name].astype(np.float32) for name in DYNAMICS_NAMES}

    def _forgetting(self) -> NDArray[np.int64]:
        events = np.zeros(len(self.sample_id), np.int64)
        was_right = np.zeros(len(self.sample_id), bool)
        for epoch in range(MAX_PROXY_EPOCHS):
            seen, right = self.seen >> epoch & 1 == 1, self.correct >> epoch & 1 == 1
            events += was_right & seen & ~right
            was_right = np.where(seen, right, was_right)
        num_epochs = int(self.seen.max(initial=0)).bit_length()  # that saw any of these samples
        return np.where(self.correct == 0, num_epochs + 1, events)


def merge(parts: Iterable[Dynamics]) -> Dynamics:
    """Add up what several workers saw; their samples may overlap, but not in one epoch.

    Sums are over the parts in their order.
    """
    parts = list(parts)
    ids = np.unique(np.concatenate([part.sample_id for part in parts] or [np.zeros(0, np.int64)]))
    count, seen, correct = np.zeros((3, len(ids)), np.int64)
    el2n, p, p_squared, margin = np.zeros((4, len(ids)))
    total = Dynamics(ids, count, el2n, p, p_squared, margin, seen, correct)
    for part in parts:
        at = np.searchsorted(ids, part.sample_id)
        for name in ("count", "el2n", "p", "p_squared", "margin"):
            getattr(total, name)[at] += getattr(part, name)
        for name in ("seen", "correct"):
            getattr(total, name)[at] |= getattr(part, name)
    return total
