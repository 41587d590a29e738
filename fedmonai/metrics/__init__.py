# SPDX-License-Identifier: Apache-2.0
"""Metrics of whole volumes, as functions and as ignite metrics."""
