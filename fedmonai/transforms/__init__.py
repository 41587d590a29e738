# SPDX-License-Identifier: Apache-2.0
"""Transforms: sampling masks, k-space to image, intensity, slices, geometry, weak labels."""
