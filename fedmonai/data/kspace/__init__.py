# SPDX-License-Identifier: Apache-2.0
"""k-space: list, read, dataset."""
