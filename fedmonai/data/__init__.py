# SPDX-License-Identifier: Apache-2.0
"""Where samples come from: data lists, datasets, splits, simulated sites, generated federations, weak labels."""

from __future__ import annotations

from fedmonai.data.kspace_dataset import KspaceDataset, collate_slices
from fedmonai.data.volume_list import kspace_volumes

__all__ = ["KspaceDataset", "collate_slices", "kspace_volumes"]
