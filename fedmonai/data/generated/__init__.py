# SPDX-License-Identifier: Apache-2.0
"""Federations drawn at random, so that everything runs without a download."""

from __future__ import annotations

from fedmonai.data.generated.weak_federation import (
    generate_fundus_federation,
    generate_octa_federation,
    generated_fundus_site,
    generated_octa_site,
)

__all__ = [
    "generate_fundus_federation",
    "generate_octa_federation",
    "generated_fundus_site",
    "generated_octa_site",
]
