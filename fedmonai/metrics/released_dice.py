# SPDX-License-Identifier: Apache-2.0
"""The Dice number that the authors' program of IOP-FL prints, for comparison with it."""

from __future__ import annotations

import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from torch import Tensor

from fedmonai.errors import ConfigError

__all__ = ["ReleaseDice", "release_dice"]


def release_dice(pred: Tensor, label: Tensor, smooth: float = 1e-5) -> Tensor:
    """Mean over the slices of a batch of the 2-D Dice of background and of foreground.

    An empty class counts 1 where both are empty, so that easy slices and the background lift the number: use
    :class:`CaseDice` to judge a model, and this one only beside numbers of the authors' program.

    Args:
        pred: logits or probabilities (B, 2, H, W), the larger wins, or class indices (B, 1, H, W).
        label: class indices (B, 1, H, W); everything above 0 is foreground.
        smooth: added to numerator and denominator.
    """
    mask = (pred.argmax(dim=1, keepdim=True) if pred.shape[1] > 1 else pred.round()) > 0
    truth = label > 0
    scores = []
    for found, present in ((~mask, ~truth), (mask, truth)):
        overlap = (found & present).flatten(1).sum(1).double()
        total = found.flatten(1).sum(1) + present.flatten(1).sum(1)
        scores.append((2 * overlap + smooth) / (total + smooth))
    return torch.stack(scores).mean()


class ReleaseDice(Metric):
    """Mean over the batches of :func:`release_dice`: depends on the batch size, as in the authors' program.

    Reads ``pred`` and ``label`` of ``engine.state.output`` (collated).

    Raises:
        ConfigError: the evaluated data have no labels.
    """

    def __init__(self) -> None:
        self._scores: list[Tensor] = []
        super().__init__()

    def reset(self) -> None:
        self._scores = []

    def iteration_completed(self, engine: Engine) -> None:
        """Score the batch of ``engine.state`` (called by ignite)."""
        output = engine.state.output
        if output["label"] is None:  # type: ignore[index]
            raise ConfigError("ReleaseDice needs labels, but the evaluated data have none: leave the metric out")
        self.update((output["pred"], output["label"]))  # type: ignore[index]

    @torch.no_grad()
    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """Take the (prediction, label) of one batch."""
        self._scores.append(release_dice(*output))

    def compute(self) -> float:
        """Return the mean over the batches seen."""
        if not self._scores:
            raise NotComputableError("ReleaseDice saw no batch")
        return float(torch.stack(self._scores).mean())
