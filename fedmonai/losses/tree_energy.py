# SPDX-License-Identifier: Apache-2.0
"""Tree energy loss of weak supervision: minimum spanning trees over an image as a filter on predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fedmonai.errors import ConfigError
from fedmonai.losses.partial_cross_entropy import class_index_map
from fedmonai.losses.precision import widened, without_autocast
from fedmonai.losses.spanning_tree import SpanningForest, ceil_log2, edge_costs, minimum_spanning_trees, root_forest
from fedmonai.losses.spanning_tree_cpu import LevelOrder
from fedmonai.losses.tree_kernel import TreeOrder, kernel, tree_sums

__all__ = ["TreeEnergyLoss", "tree_affinities", "tree_filter", "tree_support"]


def tree_affinities(features: Tensor, forest: SpanningForest, sigma: float) -> Tensor:
    """Affinity of each pixel to its parent, ``w = exp(-|f_v - f_parent|^2 / sigma)``, 0 at the root.

    Args:
        features: ``(T, C, H, W)``; the gradient flows back into them.
        forest: trees of the same ``T`` grids.
        sigma: > 0; small values make the filter local.

    Returns:
        ``(T, H * W)`` in [0, 1]; underflow to 0 is harmless (the two sides no longer affect each other).
    """
    if not sigma > 0:
        raise ConfigError(f"sigma is {sigma}; it divides squared feature distances and must be > 0")
    flat = features.flatten(2)
    towards = flat.gather(2, forest.parent[:, None].expand(-1, flat.shape[1], -1))
    affinity = torch.exp(-(flat - towards).square().sum(1) / sigma)
    return affinity.masked_fill(forest.root_mask, 0.0)


def tree_filter(values: Tensor, affinities: Tensor, forest: SpanningForest) -> Tensor:
    """Mean of ``values`` over the whole image, weighted by the affinity along the tree.

    Rows keep their sum over channels, each channel stays between its minimum and maximum, and the result does not
    depend on the root. Computed in float32, also inside autocast (float64 stays float64): bfloat16 is off by 2e-2.

    Args:
        values: ``(T, C, H, W)``.
        affinities: ``(T, H * W)`` from :func:`tree_affinities`.
        forest: trees of the same grids; with ``levels`` passes go level by level, else by path doubling.

    Returns:
        ``(T, C, H, W)``; the gradient (once differentiable) reaches ``values`` and ``affinities``.
    """
    trees, channels, height, width = values.shape
    if (trees, height, width) != (forest.parent.shape[0], forest.height, forest.width):
        raise ConfigError(
            f"values of shape {tuple(values.shape)} do not fit {forest.parent.shape[0]} trees of "
            f"{forest.height}x{forest.width} pixels"
        )
    with without_autocast(values.device):
        rows = widened(values).permute(0, 2, 3, 1).reshape(-1, channels)
        filtered = _TreeFilter.apply(rows, affinities.reshape(-1).to(rows.dtype), forest)
        return filtered.reshape(trees, height, width, channels).permute(0, 3, 1, 2)


@torch.no_grad()
def tree_support(image: Tensor, sigma: float = 0.02, backend: str = "auto") -> Tensor:
    """Effective number of pixels ``z`` (``(B, H, W)``, 1 .. H W) that the tree filter of an image averages over.

    Its median tells whether the pseudo-labels of the image tree are local or near-global; report it per site.
    """
    height, width = image.shape[-2:]
    features = widened(image)
    in_tree = minimum_spanning_trees(edge_costs(features), height, width, backend)
    forest = root_forest(in_tree, height, width, backend=backend)
    ones = torch.ones_like(features[:, :1]).reshape(-1, 1)
    _, total = _tree_sums(ones, tree_affinities(features, forest, sigma).reshape(-1, 1), forest)
    return total.reshape(-1, height, width)


class _TreeFilter(torch.autograd.Function):
    """Filter on rows: values ``(T n, C)``, affinities ``(T n,)``. Backward is one more filter of the same cost."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, affinities: Tensor, forest: SpanningForest) -> Tensor:
        weight = affinities[:, None]
        below, total = _tree_sums(torch.cat([values, torch.ones_like(weight)], 1), weight, forest)
        normalizer = total[:, -1:]
        filtered = total[:, :-1] / normalizer
        ctx.save_for_backward(weight, below, total)
        ctx.forest = forest
        return filtered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight, below, total = ctx.saved_tensors
        # The normalizer is one more channel: its gradient is minus the mean of gradient * output, added over channels.
        scaled = gradient / total[:, -1:]
        through_normalizer = -(scaled * (total[:, :-1] / total[:, -1:])).sum(1, keepdim=True)
        incoming = torch.cat([scaled, through_normalizer], 1)
        below_gradient, total_gradient = _tree_sums(incoming, weight, ctx.forest)
        if not ctx.needs_input_grad[1]:
            return total_gradient[:, :-1], None, None
        parent = ctx.forest.flat_parent
        above = total.index_select(0, parent) - weight * below
        above_gradient = total_gradient.index_select(0, parent) - weight * below_gradient
        slope = (below_gradient * above + below * above_gradient).sum(1)
        return total_gradient[:, :-1], slope.masked_fill(ctx.forest.root_mask.reshape(-1), 0.0), None


def _tree_sums(values: Tensor, weight: Tensor, forest: SpanningForest) -> tuple[Tensor, Tensor]:
    """For rows ``(T n, C)``: sums over what lies below each node, and sums over its whole tree.

    below(v) = x(v) + sum over children c of w_c below(c);  total(v) = (1 - w_v^2) below(v) + w_v total(parent).
    """
    if forest.levels is None:
        return _sums_by_doubling(values, weight, forest)
    rows = values.detach().numpy(), weight.detach().numpy()
    if isinstance(forest.levels, TreeOrder):
        below, total = tree_sums(kernel(), *rows, forest.levels, torch.get_num_threads())
    else:
        below, total = _sums_by_level(*rows, forest.levels)
    return torch.from_numpy(below), torch.from_numpy(total)


def _sums_by_doubling(values: Tensor, weight: Tensor, forest: SpanningForest) -> tuple[Tensor, Tensor]:
    """Path doubling: after k steps every node knows its descendants, or ancestors, nearer than 2^k.

    The number of steps depends on the size of the grid only (a tree could be one long path), so that the depth of
    the trees is never read from the device.
    """
    steps = ceil_log2(forest.height * forest.width)
    parent = forest.flat_parent.to(torch.int32)
    below, reach, ancestor = values, weight, parent
    for _ in range(steps):
        below = below.index_add(0, ancestor, reach * below)
        reach, ancestor = reach * reach.index_select(0, ancestor), ancestor.index_select(0, ancestor)
    total, reach, ancestor = below * (1 - weight * weight), weight, parent
    for _ in range(steps):
        total = total + reach * total.index_select(0, ancestor)
        reach, ancestor = reach * reach.index_select(0, ancestor), ancestor.index_select(0, ancestor)
    return below, total


def _sums_by_level(values: np.ndarray, weight: np.ndarray, levels: LevelOrder) -> tuple[np.ndarray, np.ndarray]:
    """One vector operation per level of the whole forest, from the leaves up and from the roots down."""
    weight = weight.take(levels.order, axis=0)
    below = values.take(levels.order, axis=0)
    for level, groups, parents in levels.upward():
        below[parents] += np.add.reduceat(below[level] * weight[level], groups, axis=0)
    total = below * (1 - weight * weight)
    for level, parents in levels.downward():
        total[level] += weight[level] * total.take(parents, axis=0)
    return below.take(levels.position, axis=0), total.take(levels.position, axis=0)


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
    autocast. The minimum spanning trees of all images and features of a batch are built together.

    >>> loss = TreeEnergyLoss(ignore_index=2)
    >>> logits, unlabeled = torch.zeros(1, 2, 8, 8), torch.full((1, 1, 8, 8), 2)
    >>> float(loss(logits, unlabeled, image=torch.rand(1, 1, 8, 8), embeddings=[torch.rand(1, 3, 4, 4)]))
    0.0

    Args:
        ignore_index: label of unlabeled pixels.
        sigma_low: > 0, width of the affinities of the image; 0.02 is for images in [0, 1].
        sigma_high: > 0, width of the affinities of the embeddings.
        mode: ``recursive``, ``add`` or ``single``.
        replicate_gray: count a one-channel image three times, as the authors' program does: it triples the distances.
        backend: how trees are built, see :func:`fedmonai.losses.spanning_tree.minimum_spanning_trees`.
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
