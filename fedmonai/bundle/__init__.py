# SPDX-License-Identifier: Apache-2.0
"""Reading bundles: checks of ids and overlays, the record of a run's config, the check a site makes before it joins."""

from fedmonai.bundle.known_ids import bundle_ids, config_files, unknown_ids
from fedmonai.bundle.live_config import check_config, live_config
from fedmonai.bundle.record import record_config

__all__ = ["bundle_ids", "check_config", "config_files", "live_config", "record_config", "unknown_ids"]
