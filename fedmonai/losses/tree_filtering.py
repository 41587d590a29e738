# SPDX-License-Identifier: Apache-2.0
"""Averaging along the paths of a spanning tree, with the gradient in closed form.

With ``w_v`` the affinity of pixel v to its parent and ``A_ij`` the product of the affinities on the path from i to j,

    y_i = sum_j A_ij x_j / z_i,    z_i = sum_j A_ij.

One pass towards the root and one back give all sums in linear time (specification of FedICRA, sections 8.4 and 8.5).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedmonai.errors import ConfigError
from fedmonai.losses.precision import widened, without_autocast
from fedmonai.losses.spanning_tree import (
    SpanningForest,
    ceil_log2,
    edge_costs,
    minimum_spanning_trees,
    root_forest,
)
from fedmonai.losses.spanning_tree_cpu import LevelOrder

__all__ = ["tree_affinities", "tree_filter", "tree_support"]


def tree_affinities(features: Tensor, forest: SpanningForest, sigma: float) -> Tensor:
    """Affinity of each pixel to its parent, ``w = exp(-|f_v - f_parent|^2 / sigma)``, 0 at the root.

    Args:
        features: ``(T, C, H, W)``; the gradient flows back into them.
        forest: trees of the same ``T`` grids.
        sigma: > 0; small values make the filter local.

    Returns:
        ``(T, H * W)`` in [0, 1]; underflow to 0 is harmless (the two sides no longer see each other).
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
    below, total = _sums_by_level(values.detach().numpy(), weight.detach().numpy(), forest.levels)
    return torch.from_numpy(below), torch.from_numpy(total)


def _sums_by_doubling(values: Tensor, weight: Tensor, forest: SpanningForest) -> tuple[Tensor, Tensor]:
    """Path doubling: after k steps every node knows its descendants, or ancestors, nearer than 2^k.

    The number of steps depends on the size of the grid only (a tree could be one long path), so that the device is
    never asked how deep its trees are.
    """
    steps = ceil_log2(forest.height * forest.width)
    below, reach, ancestor = values, weight, forest.flat_parent
    for _ in range(steps):
        below = below.index_add(0, ancestor, reach * below)
        reach, ancestor = reach * reach.index_select(0, ancestor), ancestor.index_select(0, ancestor)
    total, reach, ancestor = below * (1 - weight * weight), weight, forest.flat_parent
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
