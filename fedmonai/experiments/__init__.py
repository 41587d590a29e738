# SPDX-License-Identifier: Apache-2.0
"""Experiments: plans, comparisons, leave one out."""
