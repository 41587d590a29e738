# SPDX-License-Identifier: Apache-2.0
"""One file per method: its site half (handlers) and its server half (strategy)."""
