# SPDX-License-Identifier: Apache-2.0
"""What a method does at a site during local training and evaluation: ignite handlers."""

from fedmonai.handlers.adaptive_aggregation import AdaptiveAggregation
from fedmonai.handlers.alternating_parameters import AlternatingParameters
from fedmonai.handlers.data_position import DataPosition
from fedmonai.handlers.example_slice import ExampleSlice
from fedmonai.handlers.feature_alignment import FeatureAlignment
from fedmonai.handlers.loss_output import batch_loss
from fedmonai.handlers.loss_terms import LossTerms
from fedmonai.handlers.optimizer_reset import OptimizerReset
from fedmonai.handlers.pass_evaluation import PassEvaluation
from fedmonai.handlers.personal_model import PersonalModel
from fedmonai.handlers.poly_lr import PolyLR
from fedmonai.handlers.proximal import ProximalTerm
from fedmonai.handlers.round_lr import RoundLR
from fedmonai.handlers.save_latents import SaveLatents
from fedmonai.handlers.save_masks import SaveMasks
from fedmonai.handlers.save_reconstruction import SaveReconstruction
from fedmonai.handlers.save_segmentation import SaveSegmentation
from fedmonai.handlers.site_contrast import SiteContrast
from fedmonai.handlers.weight_contrast import WeightContrast

__all__ = [
    "AdaptiveAggregation",
    "AlternatingParameters",
    "DataPosition",
    "ExampleSlice",
    "FeatureAlignment",
    "LossTerms",
    "OptimizerReset",
    "PassEvaluation",
    "PersonalModel",
    "PolyLR",
    "ProximalTerm",
    "RoundLR",
    "SaveLatents",
    "SaveMasks",
    "SaveReconstruction",
    "SaveSegmentation",
    "SiteContrast",
    "WeightContrast",
    "batch_loss",
]
