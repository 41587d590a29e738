# SPDX-License-Identifier: Apache-2.0
"""The two sides of adversarial alignment between a source and a target site."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["domain_confusion_loss", "site_discrimination_loss"]


def domain_confusion_loss(source_logits: Tensor, target_logits: Tensor) -> Tensor:
    """The network's term of FL-MRCM: 0.5 [l(C(z_k), (1, 0)) + l(C(z_t), (0, 1))], l = binary cross-entropy of logits.

    Guo et al., CVPR 2021. l is the mean over vectors and over both logits. Logits are (N, 2) and (M, 2); N and M may
    differ. Logits of 0 give log 2.

    >>> round(float(domain_confusion_loss(torch.zeros(3, 2), torch.zeros(5, 2))), 4)
    0.6931
    """
    return 0.5 * (_code_loss(source_logits, (1.0, 0.0)) + _code_loss(target_logits, (0.0, 1.0)))


def site_discrimination_loss(source_logits: Tensor, target_logits: Tensor) -> Tensor:
    """The discriminator's loss of FL-MRCM: :func:`domain_confusion_loss` with both codes flipped.

    0.5 [l(C(z_k), (0, 1)) + l(C(z_t), (1, 0))]: what the discriminator learns to call one site, the network learns to
    have called the other.
    """
    return 0.5 * (_code_loss(source_logits, (0.0, 1.0)) + _code_loss(target_logits, (1.0, 0.0)))


def _code_loss(logits: Tensor, code: tuple[float, float]) -> Tensor:
    # the code is written on the logits' device; a tensor made of a Python list would be copied there in every step
    codes = torch.empty_like(logits)
    codes[:, 0], codes[:, 1] = code
    return F.binary_cross_entropy_with_logits(logits, codes)
