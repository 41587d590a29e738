# SPDX-License-Identifier: Apache-2.0
"""Cross entropy over the labeled pixels of a weakly labeled batch."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from fedmonai.errors import ConfigError
from fedmonai.losses.precision import widened, without_autocast

__all__ = ["PartialCrossEntropyLoss", "class_index_map"]


def class_index_map(label: Tensor, logits: Tensor, name: str) -> Tensor:
    """Labels ``(B, 1, H, W)`` or ``(B, H, W)`` of any number type as int64 ``(B, H, W)`` that fits the logits.

    Raises:
        ConfigError: the label does not have the batch and size of the logits.
    """
    label = label[:, 0] if label.dim() == logits.dim() and label.shape[1] == 1 else label
    if label.shape != logits.shape[:1] + logits.shape[2:]:
        raise ConfigError(
            f"{name}: label of shape {tuple(label.shape)} does not fit logits of shape {tuple(logits.shape)}; "
            "labels are class indices (B, 1, H, W) or (B, H, W)"
        )
    return label.long()


class PartialCrossEntropyLoss(nn.Module):
    """Partial cross entropy: mean of ``-log softmax(logits)[label]`` over the labeled pixels.

    FedICRA (arXiv 2304.05635). A batch without a labeled pixel gives 0 and a zero gradient; the authors' program
    gives NaN there, and all weights become NaN. The event is counted in ``empty_batches``. On a CPU a warning
    follows at once; on an accelerator that would wait for the device, so call :meth:`warn_if_empty` once per epoch.

    >>> loss = PartialCrossEntropyLoss(ignore_index=2)
    >>> round(float(loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 2]]]))), 4)  # log 2 at the one labeled pixel
    0.6931

    Args:
        ignore_index: label of unlabeled pixels; in FedICRA's files it is the number of classes.
    """

    empty_batches: Tensor

    def __init__(self, ignore_index: int) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.register_buffer("empty_batches", torch.zeros((), dtype=torch.long), persistent=False)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss (scalar, float32 at least) of logits ``(B, K, H, W)`` for labels ``(B, 1, H, W)`` or ``(B, H, W)``."""
        label = class_index_map(label, logits, "PartialCrossEntropyLoss")
        with without_autocast(logits.device):
            # gathered, because the cross entropy of maps has no deterministic form on a GPU
            is_labeled = label != self.ignore_index
            index = torch.where(is_labeled, label, 0)[:, None]
            log_probability = widened(logits).log_softmax(1).gather(1, index)[:, 0]
            total = -torch.where(is_labeled, log_probability, 0.0).sum()
        labeled = is_labeled.sum()
        if self.empty_batches.device != labeled.device:  # created on the device: a copy to it would wait
            self.empty_batches = torch.zeros_like(self.empty_batches, device=labeled.device)
        self.empty_batches = self.empty_batches + (labeled == 0)
        if label.device.type == "cpu":
            self.warn_if_empty()
        return total / labeled.clamp(min=1)

    def warn_if_empty(self) -> int:
        """Warn of batches without a labeled pixel since the last call, and return their number."""
        count = int(self.empty_batches)
        if count:
            warnings.warn(
                f"{count} batch(es) had no labeled pixel (all are {self.ignore_index}); their partial cross entropy "
                "is 0. Check ignore_index and the labels, or use larger batches.",
                stacklevel=2,
            )
            self.empty_batches = torch.zeros_like(self.empty_batches)
        return count
