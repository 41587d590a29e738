# SPDX-License-Identifier: Apache-2.0
"""The loss out of an engine's output, for handlers that log it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["batch_loss"]


def batch_loss(output: Mapping[str, Any]) -> Any:
    """The scalar loss of an iteration, as the ``output_transform`` of logging handlers.

    ``monai.handlers.from_engine`` gives a scalar for decollated output only; these trainers do not decollate.
    """
    return output["loss"]
