# SPDX-License-Identifier: Apache-2.0
"""The round: sites, strategies, messages, their guard, and the engine that drives them in one process."""
