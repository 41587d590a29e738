# SPDX-License-Identifier: Apache-2.0
"""Reading bundles: checks of ids and overlays, the record of a run's config, the check a site makes before it joins."""
