# SPDX-License-Identifier: Apache-2.0
"""Adversarial alignment of a source and a target site (FL-MRCM): the discriminator, and the loss of either side."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedmonai.errors import ConfigError

__all__ = ["SiteDiscriminator", "domain_confusion_loss", "site_discrimination_loss"]


class SiteDiscriminator(nn.Module):
    """Two layers that map a latent vector (B, latent_size) to one logit for each of two sites, (B, 2).

    Guo et al., CVPR 2021. As in the released program a LeakyReLU of slope 0.2 follows the output layer as well. 525,058
    parameters at the defaults.

    >>> SiteDiscriminator(latent_size=8, hidden=4)(torch.zeros(5, 8)).shape
    torch.Size([5, 2])

    Args:
        latent_size: values per vector: 2048 for the pooled bottleneck of the default reconstruction U-Net.
        hidden: width of the first layer.

    Raises:
        ConfigError: when a size is not positive.
    """

    def __init__(self, latent_size: int = 2048, hidden: int = 256) -> None:
        super().__init__()
        if min(latent_size, hidden) < 1:
            raise ConfigError(f"latent_size {latent_size} and hidden {hidden} must both be 1 or more")
        self.fc1 = nn.Linear(latent_size, hidden)
        self.fc2 = nn.Linear(hidden, 2)

    def forward(self, latents: Tensor) -> Tensor:
        """Logits (B, 2) of source and target for latents (B, latent_size)."""
        return F.leaky_relu(self.fc2(F.leaky_relu(self.fc1(latents), 0.2)), 0.2)


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

    0.5 [l(C(z_k), (0, 1)) + l(C(z_t), (1, 0))]: the discriminator learns to name the site of a vector, the network
    learns vectors for which it names the other site.
    """
    return 0.5 * (_code_loss(source_logits, (0.0, 1.0)) + _code_loss(target_logits, (1.0, 0.0)))


def _code_loss(logits: Tensor, code: tuple[float, float]) -> Tensor:
    # the code is written on the logits' device; a tensor made of a Python list would be copied there in every step
    codes = torch.empty_like(logits)
    codes[:, 0], codes[:, 1] = code
    return F.binary_cross_entropy_with_logits(logits, codes)
