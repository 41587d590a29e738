# SPDX-License-Identifier: Apache-2.0
"""Networks, one per file."""

from __future__ import annotations

from fedmonai.networks.channel_selection import ChannelSelection
from fedmonai.networks.channel_selection_unet import ChannelSelectionOutput, ChannelSelectionUNet
from fedmonai.networks.dual_domain import DualDomainUNet
from fedmonai.networks.identity_inferer import IdentityInferer
from fedmonai.networks.loading import load_weights, read_weights, save_weights
from fedmonai.networks.model_collection import ModelCollection, collect_models, with_weights
from fedmonai.networks.placement import place_network
from fedmonai.networks.reconstruction_unet import ReconstructionUNet, pooled_latent
from fedmonai.networks.routed import RoutedConv2d, RoutedConvTranspose2d
from fedmonai.networks.routing import build_routed_network, load_experts, route_network, set_routing_form
from fedmonai.networks.segmentation_unet import SegmentationUNet
from fedmonai.networks.site_discriminator import SiteDiscriminator
from fedmonai.networks.split_inferer import SplitInferer
from fedmonai.networks.two_view_inferer import TwoViewInferer

__all__ = [
    "ChannelSelection",
    "ChannelSelectionOutput",
    "ChannelSelectionUNet",
    "DualDomainUNet",
    "IdentityInferer",
    "ModelCollection",
    "ReconstructionUNet",
    "RoutedConv2d",
    "RoutedConvTranspose2d",
    "SegmentationUNet",
    "SiteDiscriminator",
    "SplitInferer",
    "TwoViewInferer",
    "build_routed_network",
    "collect_models",
    "load_experts",
    "load_weights",
    "place_network",
    "pooled_latent",
    "read_weights",
    "route_network",
    "save_weights",
    "set_routing_form",
    "with_weights",
]
