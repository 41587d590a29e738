# SPDX-License-Identifier: Apache-2.0
"""Rounds: sites, strategies, messages and their validation, and the engine that drives them."""
