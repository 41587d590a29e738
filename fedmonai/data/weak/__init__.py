# SPDX-License-Identifier: Apache-2.0
"""Weakly labeled images: list, read, dataset."""
