# SPDX-License-Identifier: Apache-2.0
"""Networks, one per file."""

from __future__ import annotations

from fedmonai.networks.channel_selection import ChannelSelection
from fedmonai.networks.channel_selection_unet import ChannelSelectionOutput, ChannelSelectionUNet

__all__ = [
    "ChannelSelection",
    "ChannelSelectionOutput",
    "ChannelSelectionUNet",
]
