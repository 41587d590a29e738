# SPDX-License-Identifier: Apache-2.0
"""Tree energy loss: unlabeled pixels should agree with their own average along spanning trees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmonai.errors import ConfigError
from fedmonai.losses.partial_cross_entropy import class_index_map
from fedmonai.losses.precision import widened, without_autocast
from fedmonai.losses.spanning_tree import SpanningForest, edge_costs, minimum_spanning_trees, root_forest
from fedmonai.losses.tree_filtering import tree_affinities, tree_filter, tree_support

__all__ = ["TreeEnergyLoss"]

MODES = ("recursive", "add", "single")


class TreeEnergyLoss(nn.Module):
    """Multiscale tree energy loss (Liang et al., CVPR 2022, arXiv 2203.10739; multiscale form of FedICRA).

    With ``p = softmax(logits)``, ``F_f`` the tree filter of features f, image I and embeddings a_1..a_n (coarse to
    fine, resized to the size of p), ``y_0 = F_I(p)`` and U the unlabeled pixels of the batch:

        recursive  y_k = F_{a_k}(y_{k-1}),  L = 1/|U| sum_U sum_c |p - y_n|
        add        y_k = F_{a_k}(y_0),      L = sum_k 1/|U| sum_U sum_c |p - y_k|
        single     the published single-scale loss: recursive with the last embedding only

    Each term lies in [0, 2]; without an unlabeled pixel the loss is 0, for a constant prediction exactly 0. The
    gradient flows through p on both sides and through the affinities of the embeddings (their only training signal),
    not through the image and not through the choice of the edges. Everything is computed in float32, also inside
    autocast. The minimum spanning trees of all images and features of a batch are built in one go.

    Args:
        ignore_index: label of unlabeled pixels.
        sigma_low: > 0, width of the affinities of the image; 0.02 is for images in [0, 1].
        sigma_high: > 0, width of the affinities of the embeddings.
        mode: ``recursive``, ``add`` or ``single``.
        replicate_gray: count a one-channel image three times, as the authors' program does: it triples the distances.
        backend: how trees are built, see :func:`fedmonai.losses.minimum_spanning_trees`.
    """

    def __init__(
        self,
        ignore_index: int,
        sigma_low: float = 0.02,
        sigma_high: float = 1.0,
        mode: str = "recursive",
        replicate_gray: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ConfigError(f"TreeEnergyLoss: mode {mode!r} is unknown; use one of {', '.join(MODES)}")
        if not sigma_low > 0 or not sigma_high > 0:
            raise ConfigError(f"TreeEnergyLoss: sigma_low {sigma_low}, sigma_high {sigma_high}; both must be > 0")
        self.ignore_index = ignore_index
        self.sigma_low = sigma_low
        self.sigma_high = sigma_high
        self.mode = mode
        self.replicate_gray = replicate_gray
        self.backend = backend

    def forward(self, logits: Tensor, label: Tensor, image: Tensor, embeddings: Sequence[Tensor] = ()) -> Tensor:
        """Loss (scalar).

        Args:
            logits: ``(B, K, H, W)``.
            label: ``(B, 1, H, W)`` or ``(B, H, W)``; pixels equal to ``ignore_index`` take part.
            image: ``(B, C, h, w)`` in [0, 1].
            embeddings: features ``(B, C_k, h_k, w_k)`` from coarse to fine; none gives the image filter alone.
        """
        unlabeled = class_index_map(label, logits, "TreeEnergyLoss") == self.ignore_index
        with without_autocast(logits.device):
            probability = widened(logits).softmax(1)
            features = self._features(image, embeddings, probability)
            forests = self._forests(features)
            smooth = tree_filter(probability, tree_affinities(features[0], forests[0], self.sigma_low), forests[0])
            distance = torch.zeros_like(probability[:, 0])
            filtered = smooth
            for embedding, forest in zip(features[1:], forests[1:], strict=True):
                affinities = tree_affinities(embedding, forest, self.sigma_high)
                filtered = tree_filter(smooth if self.mode == "add" else filtered, affinities, forest)
                if self.mode == "add":
                    distance = distance + (probability - filtered).abs().sum(1)
            if self.mode != "add" or len(features) == 1:
                distance = (probability - filtered).abs().sum(1)
            return (distance * unlabeled).sum() / unlabeled.sum().clamp(min=1)

    def support(self, image: Tensor) -> Tensor:
        """Effective number of pixels ``(B, H, W)`` that this loss's filter of the image averages over."""
        return tree_support(self._replicated(image.detach()), self.sigma_low, self.backend)

    def _replicated(self, image: Tensor) -> Tensor:
        return image.expand(-1, 3, -1, -1) if self.replicate_gray and image.shape[1] == 1 else image

    def _features(self, image: Tensor, embeddings: Sequence[Tensor], like: Tensor) -> list[Tensor]:
        """The image without gradient and the embeddings of the mode, all at the size of the prediction."""
        chosen = [self._replicated(image.detach()), *(embeddings[-1:] if self.mode == "single" else embeddings)]
        size = like.shape[-2:]
        resized = []
        for feature in chosen:
            wide = widened(feature).to(like.dtype)
            if wide.shape[-2:] != size:
                wide = functional.interpolate(wide, size=size, mode="bilinear", align_corners=False)
            resized.append(wide)
        return resized

    @torch.no_grad()
    def _forests(self, features: list[Tensor]) -> list[SpanningForest]:
        """Rooted trees of each set of features; the spanning trees of all sets are found together."""
        height, width = features[0].shape[-2:]
        costs = torch.cat([edge_costs(feature.detach()) for feature in features])
        in_tree = minimum_spanning_trees(costs, height, width, self.backend)
        parts = in_tree.split([len(feature) for feature in features])
        return [root_forest(part, height, width, backend=self.backend) for part in parts]
