# SPDX-License-Identifier: Apache-2.0
"""Cases of segmentation: list, read, dataset."""
