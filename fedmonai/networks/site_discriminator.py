# SPDX-License-Identifier: Apache-2.0
"""Discriminator of two sites' latent vectors (FL-MRCM)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fedmonai.errors import ConfigError

__all__ = ["SiteDiscriminator"]


class SiteDiscriminator(nn.Module):
    """Two layers that map a latent vector (B, latent_size) to one logit for each of two sites, (B, 2).

    Guo et al., CVPR 2021. As in the released program the output, too, passes a LeakyReLU of slope 0.2. 525,058
    parameters at the defaults.

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
