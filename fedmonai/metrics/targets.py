# SPDX-License-Identifier: Apache-2.0
"""Scores of named targets: one metric per target and kind, and the mean Dice that chooses the best round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.metrics.segmentation import CaseASSD, CaseDice, CaseHD95, CaseMetric
from fedmonai.metrics.volume import VolumeMetric

__all__ = ["TargetDice", "target_metrics"]

Targets = Mapping[str, int | None]


class TargetDice(VolumeMetric):
    """Mean over the targets of the 3-D Dice of every case; see :class:`CaseDice` for empty masks.

    Args:
        targets: class of each named target, None for everything above 0 (the disc is cup or rim).

    Raises:
        ConfigError: when there is no target.
    """

    def __init__(self, targets: Targets) -> None:
        self.metrics = [CaseDice(index) for index in _checked(targets).values()]
        super().__init__()

    def prepare(self, pred: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        masks = [metric.prepare(pred, label) for metric in self.metrics]
        return torch.cat([mask for mask, _ in masks]), torch.cat([mask for _, mask in masks])

    def score(self, pred: Tensor, label: Tensor, info: Mapping[str, Any]) -> float:
        planes = zip(self.metrics, pred.split(1, 1), label.split(1, 1), strict=True)
        return sum(metric.score(mask, truth, info) for metric, mask, truth in planes) / len(self.metrics)


def target_metrics(targets: Targets, spacing: Sequence[float] | None = None) -> dict[str, CaseMetric]:
    """``dice_<name>``, ``hd95_<name>`` and ``assd_<name>`` of every target, for an evaluator's additional metrics.

    Args:
        targets: class of each named target, None for everything above 0.
        spacing: (row, column, slice) of data that do not tell it; ``[1, 1, 1]`` counts pixels.

    Raises:
        ConfigError: when there is no target.
    """
    found: dict[str, CaseMetric] = {}
    for name, index in _checked(targets).items():
        found[f"dice_{name}"] = CaseDice(index)
        found[f"hd95_{name}"] = CaseHD95(index, spacing)
        found[f"assd_{name}"] = CaseASSD(index, spacing)
    return found


def _checked(targets: Targets) -> Targets:
    if not targets:
        raise ConfigError("targets is empty; name what is scored, for example {disc: null, cup: 1}.")
    return targets
