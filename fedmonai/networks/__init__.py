# SPDX-License-Identifier: Apache-2.0
"""Networks, one per file."""
