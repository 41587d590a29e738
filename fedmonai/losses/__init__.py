# SPDX-License-Identifier: Apache-2.0
"""Losses: tensors in, a scalar out. They know no engine, no round and no config."""

from __future__ import annotations

from fedmonai.losses.adaptation import AdaptationLoss, consistency_term, entropy_term, shape_term
from fedmonai.losses.batch_dice import BatchDiceLoss
from fedmonai.losses.gated_crf import GatedCRFLoss
from fedmonai.losses.partial_cross_entropy import PartialCrossEntropyLoss
from fedmonai.losses.perturbed_view import PerturbedView
from fedmonai.losses.site_confusion import site_confusion_loss, site_discrimination_loss
from fedmonai.losses.site_contrast import SiteContrastLoss, gate_saturation
from fedmonai.losses.spanning_tree import (
    SpanningForest,
    edge_costs,
    grid_edges,
    minimum_spanning_trees,
    root_forest,
)
from fedmonai.losses.tree_energy import TreeEnergyLoss
from fedmonai.losses.tree_filtering import tree_affinities, tree_filter, tree_support
from fedmonai.losses.weak_supervision import WeakSupervisionLoss
from fedmonai.losses.weight_contrast import WeightContrastLoss

__all__ = [
    "AdaptationLoss",
    "BatchDiceLoss",
    "GatedCRFLoss",
    "PartialCrossEntropyLoss",
    "PerturbedView",
    "SiteContrastLoss",
    "SpanningForest",
    "TreeEnergyLoss",
    "WeakSupervisionLoss",
    "WeightContrastLoss",
    "consistency_term",
    "edge_costs",
    "entropy_term",
    "gate_saturation",
    "grid_edges",
    "minimum_spanning_trees",
    "root_forest",
    "shape_term",
    "site_confusion_loss",
    "site_discrimination_loss",
    "tree_affinities",
    "tree_filter",
    "tree_support",
]
