# SPDX-License-Identifier: Apache-2.0
"""Dice loss over a whole batch, the training loss of IOP-FL."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmonai.errors import ConfigError
from fedmonai.losses.partial_cross_entropy import class_index_map

__all__ = ["BatchDiceLoss"]


class BatchDiceLoss(nn.Module):
    r"""Mean over the classes of :math:`1 - (2 \sum p y + s) / (\sum p + \sum y + s)`, the sums over the whole batch.

    Jiang et al., IOP-FL (IEEE TMI 2023): p = softmax of the logits, y = one-hot label, background included. Summing
    over the batch keeps slices with little or no foreground from dominating. Range [0, 1): 0 for a perfect and
    certain prediction. A class that is neither predicted nor labeled has loss 0.

    Args:
        smooth: s above, keeps empty classes defined.

    Raises:
        ConfigError: the label does not fit the logits, or ``smooth`` is not positive.
    """

    def __init__(self, smooth: float = 1e-5) -> None:
        super().__init__()
        if smooth <= 0:
            raise ConfigError(f"BatchDiceLoss: smooth is {smooth}, it must be positive")
        self.smooth = smooth

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss (scalar) of logits (B, K, H, W) for class indices (B, 1, H, W) or (B, H, W)."""
        target = class_index_map(label, logits, "BatchDiceLoss")
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            pred = logits.softmax(dim=1)
            onehot = functional.one_hot(target, logits.shape[1]).movedim(-1, 1).to(pred.dtype)
            axes = [axis for axis in range(pred.dim()) if axis != 1]
            overlap = (pred * onehot).sum(axes)
            total = pred.sum(axes) + onehot.sum(axes)
            return 1 - ((2 * overlap + self.smooth) / (total + self.smooth)).mean()
