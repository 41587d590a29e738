# SPDX-License-Identifier: Apache-2.0
"""The baseline without a network: what the input itself scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai.inferers import Inferer
from torch import Tensor

__all__ = ["IdentityInferer"]


class IdentityInferer(Inferer):
    """Return the input as the prediction, for the zero-filled baseline of a reconstruction.

    An evaluator with it scores the undersampled image by the same metrics and postprocessing as a network's output.
    """

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Return ``inputs``; the network is not called."""
        return inputs
