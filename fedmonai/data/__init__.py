# SPDX-License-Identifier: Apache-2.0
"""Where samples come from: MR slices from HDF5 volumes, data lists, split manifests, simulated sites."""
