# SPDX-License-Identifier: Apache-2.0
"""Federations drawn at random, so that everything runs without a download."""
