# SPDX-License-Identifier: Apache-2.0
"""The site contrast of FedICRA as a term of local training."""

from __future__ import annotations

from ignite.engine import Engine
from monai.engines import IterationEvents
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.losses.site_contrast import SiteContrastLoss, gate_saturation

__all__ = ["SiteContrast"]


class SiteContrast:
    """Adds ``weight * contrast(gates, site)`` to the loss before the backward pass (arXiv 2304.05635, "LC").

    The gates of all sites come with the prediction of
    :class:`fedmonai.networks.channel_selection_unet.ChannelSelectionUNet`, from the same pass of the encoder: nothing is computed twice and no
    statistics move. Iterations in which the gates receive no gradient (only the last layer is trained) are skipped; the
    authors' program computes the term there in vain.

    Args:
        loss: the contrast and its mode.
        site: own index, from 0.
        weight: alpha of the paper, >= 0; 0 switches the term off and attaches nothing.

    Raises:
        ConfigError: on a negative weight; at the first iteration, when the prediction has no gates.
    """

    def __init__(self, loss: SiteContrastLoss, site: int, weight: float = 1.0) -> None:
        if not weight >= 0:
            raise ConfigError(f"contrast_weight is {weight}; give a weight of at least 0 (0 switches the term off).")
        self.loss = loss
        self.site = site
        self.weights: dict[str, float] = {"contrast": float(weight)} if weight else {}
        #: what the last iteration had, without weights
        self.terms: dict[str, Tensor] = {}

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if self.weights:
            engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        output = engine.state.output
        gates = getattr(output["pred"], "gates", None)  # type: ignore[index]
        if gates is None:
            raise ConfigError(
                "SiteContrast: the prediction has no gates; use ChannelSelectionUNet with training_outputs true, or "
                "set contrast_weight to 0."
            )
        self.terms = {}
        if gates.requires_grad:
            term = self.loss(gates, self.site)
            output["loss"] = output["loss"] + self.weights["contrast"] * term  # type: ignore[index]
            self.terms = {"contrast": term.detach(), "gate_saturation": gate_saturation(gates)}
