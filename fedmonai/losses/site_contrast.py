# SPDX-License-Identifier: Apache-2.0
"""Site contrast: the channel gates of a site should differ from those the other sites would give the same image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedmonai.errors import ConfigError
from fedmonai.losses.precision import widened

__all__ = ["SiteContrastLoss", "gate_saturation"]

MODES = ("intended", "released")


class SiteContrastLoss(nn.Module):
    """Contrast between the channel gates of all sites for the same features (FedICRA, arXiv 2304.05635; FedLC).

    With ``h_j`` the gates (0..1) of site j, i the own site, S sites:

        intended  L =  1/(S - 1) sum_{j != i} relu(margin - MSE(h_i, h_j)),           gradient to both sides
        released  L = -1/(S - 1) sum_{j != i} MSE(h_i, stop_gradient(h_j))            in (-1, 0]

    All gates come from one pass of the encoder, so no further forward is needed and no statistics move. The margin is
    ours: without one the optimum of the published loss is that every gate saturates at 0 or 1, where it no longer
    learns; watch :func:`gate_saturation`. With one site, or ``margin = 0``, the loss is 0.

    >>> gates = torch.tensor([[[0.2, 0.8]], [[0.4, 0.8]]])  # two sites, one image, two channels: MSE 0.02
    >>> round(float(SiteContrastLoss(margin=0.1)(gates, site=0)), 4)
    0.08

    Args:
        mode: ``intended`` or ``released``.
        margin: mean squared difference of gates beyond which sites count as apart (two independent uniform gates
            differ by 1/6); only for mode ``intended``.
    """

    def __init__(self, mode: str = "intended", margin: float = 0.1) -> None:
        super().__init__()
        if mode not in MODES:
            raise ConfigError(f"SiteContrastLoss: mode {mode!r} is unknown; use one of {', '.join(MODES)}")
        if not 0 <= margin <= 1:
            raise ConfigError(f"SiteContrastLoss: margin {margin} is outside [0, 1], the range of squared differences")
        self.mode = mode
        self.margin = margin

    def forward(self, gates: Tensor, site: int) -> Tensor:
        """Loss (scalar) of the gates ``(S, B, C)`` of all sites, ``site`` being the own index.

        Raises:
            ConfigError: the index is not one of the S sites.
        """
        if not 0 <= site < len(gates):
            raise ConfigError(f"SiteContrastLoss: site index {site} is not one of the {len(gates)} sites (from 0)")
        gates = widened(gates)
        others = torch.cat([gates[:site], gates[site + 1 :]])
        if self.mode == "released":
            others = others.detach()
        apart = (gates[site] - others).square().flatten(1).mean(1)
        terms = -apart if self.mode == "released" else torch.relu(self.margin - apart)
        return terms.sum() / max(len(others), 1)


@torch.no_grad()
def gate_saturation(gates: Tensor, tolerance: float = 0.02) -> Tensor:
    """Fraction (0..1, scalar) of gates within ``tolerance`` of 0 or 1, where the sigmoid no longer learns."""
    return ((gates < tolerance) | (gates > 1 - tolerance)).float().mean()
