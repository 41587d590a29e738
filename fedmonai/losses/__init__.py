# SPDX-License-Identifier: Apache-2.0
"""Losses: tensors in, a scalar out. They know no engine, no round and no config."""

from __future__ import annotations

from fedmonai.losses.gated_crf import GatedCRFLoss
from fedmonai.losses.partial_cross_entropy import PartialCrossEntropyLoss
from fedmonai.losses.site_contrast import SiteContrastLoss, gate_saturation
from fedmonai.losses.spanning_tree import (
    SpanningForest,
    edge_costs,
    grid_edges,
    minimum_spanning_trees,
    root_forest,
)
from fedmonai.losses.tree_energy import TreeEnergyLoss
from fedmonai.losses.tree_filter import tree_affinities, tree_filter, tree_support

__all__ = [
    "GatedCRFLoss",
    "PartialCrossEntropyLoss",
    "SiteContrastLoss",
    "SpanningForest",
    "TreeEnergyLoss",
    "edge_costs",
    "gate_saturation",
    "grid_edges",
    "minimum_spanning_trees",
    "root_forest",
    "tree_affinities",
    "tree_filter",
    "tree_support",
]
