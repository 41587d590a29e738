# SPDX-License-Identifier: Apache-2.0
"""MR transforms: masks, k-space to image, intensity; as functions and per batch."""
