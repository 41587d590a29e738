# SPDX-License-Identifier: Apache-2.0
"""Mixing two sets of parameters element by element with weights that are learned by gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedmonai.errors import ConfigError

__all__ = ["ElementMix"]

ORDERS = ("fedala", "released")


class ElementMix:
    r"""``m = b + (o - b) W`` for every parameter, W in [0, 1] (FedALA, Zhang et al., AAAI 2023, arXiv 2212.01197).

    ``fedala``: the base b is the site's own parameter, the other o the one received; W starts at 1, which is the
    received one to the bit. ``released``: as FedICRA's program has it, the other way round; W starts at 1, which is the
    site's own, and stays near it.

    One step with the gradient g of the loss at m: :math:`W \leftarrow clip(W - \eta\, g (o - b), 0, 1)`.

    Args:
        eta: step size, >= 0; 0 leaves W at its start (``fedala``: no personal part; ``released``: own parameters).
        order: ``fedala`` or ``released``.

    Raises:
        ConfigError: on a negative ``eta`` or another order.
    """

    def __init__(self, eta: float = 1.0, order: str = "fedala") -> None:
        if not eta >= 0:
            raise ConfigError(f"mixing_eta is {eta}; give a step size of at least 0.")
        if order not in ORDERS:
            raise ConfigError(f"mixing_order is '{order}'; choose one of {', '.join(ORDERS)}.")
        self.eta = eta
        self.order = order
        #: W by name of parameter
        self.weights: dict[str, Tensor] = {}

    def begin(self, parameters: Mapping[str, Tensor], forget: bool = False) -> None:
        """Make W for parameters that have none yet; ``forget`` starts all of it afresh."""
        for name, parameter in parameters.items():
            if forget or name not in self.weights:
                self.weights[name] = torch.ones_like(parameter)
            self.weights[name] = self.weights[name].to(parameter.device)  # a state from a file lies on the CPU

    @torch.no_grad()
    def blend(
        self, weight_of: Mapping[str, str], local: Mapping[str, Tensor], received: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Mixed tensors; ``weight_of`` names for each the parameter whose W it is mixed by."""
        base, other = (local, received) if self.order == "fedala" else (received, local)
        weights = [self.weights[name] for name in weight_of.values()]
        # lerp gives either end exactly where W is 0 or 1
        mixed = torch._foreach_lerp([base[n] for n in weight_of], [other[n] for n in weight_of], weights)
        return dict(zip(weight_of, mixed, strict=True))

    @torch.no_grad()
    def learn(
        self,
        names: Sequence[str],
        gradients: Sequence[Tensor],
        local: Mapping[str, Tensor],
        received: Mapping[str, Tensor],
    ) -> None:
        """One step of W with the gradients of the loss at the mixed tensors."""
        base, other = (local, received) if self.order == "fedala" else (received, local)
        slopes = torch._foreach_sub([other[n] for n in names], [base[n] for n in names])
        torch._foreach_mul_(slopes, list(gradients))
        weights = [self.weights[name] for name in names]
        torch._foreach_add_(weights, slopes, alpha=-self.eta)
        torch._foreach_clamp_min_(weights, 0.0)
        torch._foreach_clamp_max_(weights, 1.0)
