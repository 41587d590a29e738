# SPDX-License-Identifier: Apache-2.0
"""Networks, their preparation and their inferers."""
