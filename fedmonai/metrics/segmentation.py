# SPDX-License-Identifier: Apache-2.0
"""Dice, HD95 and ASSD per case in millimeters, of named targets, and the Dice of IOP-FL's released program."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.metrics.volume import VolumeMetric

__all__ = ["CaseASSD", "CaseDice", "CaseHD95", "ReleaseDice", "TargetDice", "release_dice", "target_metrics"]

Targets = Mapping[str, int | None]


class CaseMetric(VolumeMetric):
    """Base of the metrics of a case: predictions become masks, and masks may be empty.

    Predictions are logits or probabilities with one channel per class (the largest wins), or one channel of class
    indices; labels are class indices. The mask is class ``class_index``, or everything above 0 for None.

    A case in which exactly one of the two masks is empty gets the worst value, is counted in ``one_empty`` (names of
    the cases of this run) and warned of.
    """

    def __init__(self, class_index: int | None = None) -> None:
        self.class_index = class_index
        self.one_empty: list[str] = []
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self.one_empty = []

    def prepare(self, pred: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the two boolean masks (1, H, W) only."""
        classes = pred.argmax(dim=0, keepdim=True) if pred.shape[0] > 1 else pred.round()
        if self.class_index is None:
            return classes > 0, label > 0
        return classes == self.class_index, label == self.class_index

    def score(self, pred: Tensor, label: Tensor, info: Mapping[str, Any]) -> float:
        found, present = bool(pred.any()), bool(label.any())
        if not found and not present:
            return self.score_both_empty()
        if found != present:
            self.one_empty.append(info["volume"])
            empty = "label" if found else "prediction"
            value = self.score_one_empty(pred, info)
            warnings.warn(f"{type(self).__name__}: the {empty} of case {info['volume']} is empty: scored {value:.4g}")
            return value
        return self.score_masks(pred[:, 0], label[:, 0], info)

    def score_both_empty(self) -> float:
        raise NotImplementedError

    def score_one_empty(self, pred: Tensor, info: Mapping[str, Any]) -> float:
        raise NotImplementedError

    def score_masks(self, pred: Tensor, label: Tensor, info: Mapping[str, Any]) -> float:
        """Score two masks (slices, H, W), neither of them empty."""
        raise NotImplementedError


class CaseDice(CaseMetric):
    r"""3-D Dice of every case, :math:`2 |P \cap Y| / (|P| + |Y|)` over all its slices; 0 to 1, larger is better.

    Both masks empty: 1. One empty: 0, counted and warned of (see :class:`CaseMetric`).

    >>> label = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(2, 1, 4, 4)
    >>> metric, batch = CaseDice(), {"volume": ["a", "a"], "num_slices": [2, 2]}
    >>> metric.update(({"pred": torch.ones(2, 1, 4, 4), "label": label}, batch))
    >>> round(metric.compute(), 2)  # 2 * 16 / (32 + 16)
    0.67

    Args:
        class_index: the class to score; None (default) = everything above 0.
    """

    def score_both_empty(self) -> float:
        return 1.0

    def score_one_empty(self, pred: Tensor, info: Mapping[str, Any]) -> float:
        return 0.0

    def score_masks(self, pred: Tensor, label: Tensor, info: Mapping[str, Any]) -> float:
        overlap = (pred & label).sum().double()
        return float(2 * overlap / (pred.sum() + label.sum()))


class CaseDistance(CaseMetric):
    """Base of the surface distances: the spacing, and the image diagonal as the worst value."""

    batch_keys = ("spacing",)

    def __init__(self, class_index: int | None = None, spacing: Sequence[float] | None = None) -> None:
        super().__init__(class_index)
        if spacing is not None and (len(spacing) != 3 or min(spacing) <= 0):
            raise ConfigError(
                f"spacing is {list(spacing)}, it must be three positive lengths in mm: row, column, slice"
            )
        self.spacing = spacing

    def score_both_empty(self) -> float:
        return 0.0

    def score_one_empty(self, pred: Tensor, info: Mapping[str, Any]) -> float:
        rows, columns = pred.shape[-2:]
        return math.hypot(*(n * s for n, s in zip((rows, columns, len(pred)), self._lengths(info), strict=True)))

    def score_masks(self, pred: Tensor, label: Tensor, info: Mapping[str, Any]) -> float:
        lengths = self._lengths(info)
        if len(pred) == 1:  # a single slice has an outline; as a 3-D mask every pixel would be surface
            return self.distance(pred[None], label[None], lengths[:2])
        return self.distance(pred.movedim(0, -1)[None, None], label.movedim(0, -1)[None, None], lengths)

    def distance(self, pred: Tensor, label: Tensor, lengths: Sequence[float]) -> float:
        """Distance in mm of two masks (1, 1, H, W[, slices]) with the pixel ``lengths`` of those axes."""
        raise NotImplementedError

    def _lengths(self, info: Mapping[str, Any]) -> list[float]:
        spacing = info["spacing"] if self.spacing is None else self.spacing
        if spacing is None:
            raise ConfigError(
                f"{type(self).__name__} measures in mm, but the batch has no key 'spacing': "
                "use a dataset that gives it, or set spacing (row, column, slice; [1, 1, 1] counts pixels)"
            )
        return [float(length) for length in spacing]


class CaseHD95(CaseDistance):
    """95th percentile of the surface distances of every case in mm, the larger of the two directions.

    Both masks empty: 0. One empty: the diagonal of the image in mm, counted and warned of (see :class:`CaseMetric`).

    >>> pred, label = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    >>> pred[..., 2, 2] = label[..., 2, 5] = 1
    >>> metric, batch = CaseHD95(spacing=(1.0, 2.0, 5.0)), {"volume": ["a"], "num_slices": [1]}
    >>> metric.update(({"pred": pred, "label": label}, batch))
    >>> round(metric.compute(), 2)  # three columns of 2 mm
    6.0

    Args:
        class_index: the class to score; None (default) = everything above 0.
        spacing: (row, column, slice) in mm for data without the batch key ``spacing``; [1, 1, 1] counts pixels.

    Raises:
        ConfigError: no spacing known, or one that is not three positive numbers.
    """

    def distance(self, pred: Tensor, label: Tensor, lengths: Sequence[float]) -> float:
        return float(
            compute_hausdorff_distance(pred, label, include_background=True, percentile=95, spacing=list(lengths))
        )


class CaseASSD(CaseDistance):
    """Average symmetric surface distance of every case in mm: mean over the surface points of both masks.

    Both masks empty: 0. One empty: the diagonal of the image in mm, counted and warned of (see :class:`CaseMetric`).

    >>> pred, label = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    >>> pred[..., 2, 2] = label[..., 2, 2:4] = 1
    >>> metric, batch = CaseASSD(spacing=(1.0, 3.0, 5.0)), {"volume": ["a"], "num_slices": [1]}
    >>> metric.update(({"pred": pred, "label": label}, batch))
    >>> round(metric.compute(), 2)  # (0 + 0 + 3 mm) / 3 points
    1.0

    Args:
        class_index: the class to score; None (default) = everything above 0.
        spacing: (row, column, slice) in mm for data without the batch key ``spacing``; [1, 1, 1] counts pixels.

    Raises:
        ConfigError: no spacing known, or one that is not three positive numbers.
    """

    def distance(self, pred: Tensor, label: Tensor, lengths: Sequence[float]) -> float:
        value = compute_average_surface_distance(
            pred, label, include_background=True, symmetric=True, spacing=list(lengths)
        )
        return float(value)


def release_dice(pred: Tensor, label: Tensor, smooth: float = 1e-5) -> Tensor:
    """Mean over the slices of a batch of the 2-D Dice of background and of foreground.

    An empty class counts 1 where both are empty, so that empty slices and the background raise the value: use
    :class:`CaseDice` to assess a model, and this one only to compare with values of the authors' program.

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

    >>> metric = ReleaseDice()
    >>> metric.update((torch.ones(1, 1, 4, 4), torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 1, 4, 4)))
    >>> round(metric.compute(), 2)  # background 0, foreground 2 / 3
    0.33

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


class TargetDice(VolumeMetric):
    """Mean over the targets of the 3-D Dice of every case; see :class:`CaseDice` for empty masks.

    >>> label = torch.tensor([1.0, 1.0, 2.0, 2.0]).expand(1, 1, 4, 4)
    >>> metric, batch = TargetDice({"disc": None, "cup": 1}), {"volume": ["a"], "num_slices": [1]}
    >>> metric.update(({"pred": torch.ones(1, 1, 4, 4), "label": label}, batch))
    >>> round(metric.compute(), 2)  # disc 1, cup 2 / 3
    0.83

    Args:
        targets: class of each named target, None for everything above 0 (the disc is cup or rim).

    Raises:
        ConfigError: when there is no target.
    """

    def __init__(self, targets: Targets) -> None:
        self.metrics = [CaseDice(index) for index in _checked_targets(targets).values()]
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
        spacing: (row, column, slice) of data without it; ``[1, 1, 1]`` counts pixels.

    Raises:
        ConfigError: when there is no target.
    """
    found: dict[str, CaseMetric] = {}
    for name, index in _checked_targets(targets).items():
        found[f"dice_{name}"] = CaseDice(index)
        found[f"hd95_{name}"] = CaseHD95(index, spacing)
        found[f"assd_{name}"] = CaseASSD(index, spacing)
    return found


def _checked_targets(targets: Targets) -> Targets:
    if not targets:
        raise ConfigError("targets is empty; name what is scored, for example {disc: null, cup: 1}.")
    return targets
