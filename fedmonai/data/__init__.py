# SPDX-License-Identifier: Apache-2.0
"""Data: lists, readers, datasets, caches, provenance, conversion, generated federations."""
