# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers that belong to no single method: rates, terms of the loss, saved results, pictures."""
