# SPDX-License-Identifier: Apache-2.0
"""The local objective of FedICRA: partial cross entropy, tree energy and gated CRF, each with its weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedmonai.errors import ConfigError
from fedmonai.losses.gated_crf import GatedCRFLoss
from fedmonai.losses.partial_cross_entropy import PartialCrossEntropyLoss
from fedmonai.losses.tree_energy import TreeEnergyLoss

__all__ = ["WeakSupervisionLoss"]


class WeakSupervisionLoss(nn.Module):
    """Loss of a weakly labeled batch (FedICRA, arXiv 2304.05635): ``L = L_pCE + w_tree L_tree + w_crf L_CRF``.

    The fourth term of the paper, the site contrast, needs the index of the site and is added by
    :class:`~fedmonai.methods.fedicra.SiteContrast`. As in the authors' program the logits alone are compared with
    labels, and the auxiliary maps serve as embeddings of the trees only. A term of weight 0 is not computed; with both
    at 0 this is the partial cross entropy. Terms are computed in float32, also inside autocast.

    Ours: the reach of the CRF can follow the size of the image (``crf_scale``), and a handler may change
    :attr:`weights` between iterations (:class:`fedmonai.handlers.rates.TermRamp`); in the authors' program pixels and
    weights are constants.

    After every call :attr:`terms` holds the terms without their weights, detached and on the device;
    :class:`fedmonai.handlers.loss_terms.LossTerms` averages them and reads them once per epoch.

    >>> from types import SimpleNamespace
    >>> output = SimpleNamespace(logits=torch.zeros(1, 2, 8, 8), auxiliary=[], image=torch.zeros(1, 1, 8, 8))
    >>> loss = WeakSupervisionLoss(num_classes=2)
    >>> loss(output, torch.ones(1, 1, 8, 8)).shape, sorted(loss.terms)
    (torch.Size([]), ['crf', 'pce', 'tree'])

    Args:
        num_classes: classes K; label K is unlabeled.
        tree_weight: weight of :class:`TreeEnergyLoss`, >= 0.
        crf_weight: weight of :class:`GatedCRFLoss`, >= 0. Near the start of training this term can be seven times the
            cross entropy in spite of its weight of 0.1.
        tree_mode: ``recursive``, ``add`` or ``single``.
        sigma_low: width of the affinities of the image, in units of an image in [0, 1].
        sigma_high: width of the affinities of the auxiliary maps.
        crf_radius: largest offset of a pair of pixels, times ``crf_scale``.
        crf_sigma_xy: width of the CRF's kernel in pixels, times ``crf_scale``.
        crf_sigma_rgb: width of the CRF's kernel in units of the image.
        backend: how trees are built, see :func:`fedmonai.losses.spanning_tree.minimum_spanning_trees`.
        crf_scale: > 0, factor of radius (rounded, at least 1) and width: side of the images over that of the images
            that the two are meant for, 256 in the paper. 1 takes them as pixels of the image at hand, as released. With
            a scale s a pixel has about s^2 as many neighbors, and the term of the same picture falls by as much.

    Raises:
        ConfigError: a negative weight, a ``crf_scale`` that is not positive, or an argument that a term refuses.
    """

    def __init__(
        self,
        num_classes: int,
        tree_weight: float = 0.1,
        crf_weight: float = 0.1,
        tree_mode: str = "recursive",
        sigma_low: float = 0.02,
        sigma_high: float = 1.0,
        crf_radius: int = 5,
        crf_sigma_xy: float = 6.0,
        crf_sigma_rgb: float = 0.1,
        backend: str = "auto",
        crf_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not crf_scale > 0:
            raise ConfigError(f"crf_scale is {crf_scale}; give a factor above 0, such as image_size / 256.")
        for name, weight in (("tree_weight", tree_weight), ("crf_weight", crf_weight)):
            if not weight >= 0:
                raise ConfigError(f"{name} is {weight}; give a weight of at least 0 (0 switches the term off).")
        self.partial = PartialCrossEntropyLoss(num_classes)
        self.tree = TreeEnergyLoss(num_classes, sigma_low, sigma_high, tree_mode, backend=backend)
        # GatedCRFLoss refuses a radius below 1
        radius = max(round(crf_radius * crf_scale), 1) if crf_radius >= 1 else crf_radius
        self.crf = GatedCRFLoss(radius, crf_sigma_xy * crf_scale, crf_sigma_rgb)
        #: weight of every term that is switched on, now
        self.weights: dict[str, float] = {"pce": 1.0}
        self.weights |= {n: w for n, w in (("tree", float(tree_weight)), ("crf", float(crf_weight))) if w}
        #: terms of the last call, without weights
        self.terms: dict[str, Tensor] = {}

    def forward(self, output: Any, label: Tensor) -> Tensor:
        """Loss (scalar).

        Args:
            output: ``logits`` ``(B, K, H, W)``, ``auxiliary`` (maps from coarse to fine) and ``image`` ``(B, C, H, W)``
                in [0, 1], as :class:`~fedmonai.networks.channel_selection_unet.ChannelSelectionOutput` has them;
                logits alone suffice when both weights are 0.
            label: ``(B, 1, H, W)`` or ``(B, H, W)``.

        Raises:
            ConfigError: logits alone although a term needs the image.
        """
        logits, image, auxiliary = self._parts(output)
        terms = {"pce": self.partial(logits, label)}
        if self.weights.get("tree"):
            terms["tree"] = self.tree(logits, label, image, auxiliary)
        if self.weights.get("crf"):
            terms["crf"] = self.crf(logits, image)
        self.terms = {name: term.detach() for name, term in terms.items()}
        return torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()

    def _parts(self, output: Any) -> tuple[Tensor, Any, Sequence[Tensor]]:
        if not isinstance(output, Tensor):
            return output.logits, output.image, output.auxiliary
        if len(self.weights) > 1:
            raise ConfigError(
                "WeakSupervisionLoss: the network gave logits only, but tree and CRF terms need the image; set "
                "training_outputs of the network, or tree_weight and crf_weight to 0."
            )
        return output, None, ()

    def once_per_epoch(self, output: Any) -> dict[str, Tensor]:
        """Median number of pixels that the tree filter of the images averages over; empty without the tree term.

        Near the size of the image the pseudo-labels of the image's tree are near-global, near 1 there are none.
        """
        return {"median_support": self.tree.support(output.image).median()} if "tree" in self.weights else {}

    def warn_if_empty(self) -> int:
        """Warn of batches without a labeled pixel, see :class:`PartialCrossEntropyLoss`."""
        return self.partial.warn_if_empty()
