# SPDX-License-Identifier: Apache-2.0
r"""FedProx: local training with a proximal term that keeps a site's weights near the global ones.

Li et al., Federated Optimization in Heterogeneous Networks (MLSys 2020), equation 2: site k trains on

.. math:: h_k(w; w_g) = L_k(w) + \frac{\mu}{2} \lVert w - w_g \rVert^2,

:math:`w_g` the weights that its local training starts with. The server aggregates as in federated averaging. The
paper's inexact local solutions (epochs that vary from site to site) are not part of this.
"""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.protocol import RoundContext, SiteHandler

__all__ = ["ProximalTerm"]


class ProximalTerm(SiteHandler):
    r"""Proximal term of FedProx, added to what a site trains on.

    The term is added as its gradient :math:`\mu (w - w_g)` after the backward pass, in two fused passes over the
    weights, so the reported training loss is L alone and compares with that of other methods. Only what is shared is
    held: private parameters have no global counterpart, and buffers no gradient. Works under automatic mixed precision
    and gradient accumulation, and under a stock ``MonaiAlgo``, where every parameter counts as shared.

    Args:
        mu: weight of the term, 0 or more. 0 is FedAvg, to the bit.

    Raises:
        ConfigError: when ``mu`` is negative or no number.
    """

    def __init__(self, mu: float = 0.01) -> None:
        if not mu >= 0:
            raise ConfigError(f"mu is {mu}; give 0 (FedAvg) or more.")
        self.mu = mu
        self._held: list[tuple[Tensor, Tensor]] = []

    def attach(self, engine: Engine) -> None:
        if self.mu > 0:
            engine.add_event_handler(Events.STARTED, self._begin)
            engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)
            engine.add_event_handler(Events.COMPLETED, self._end)

    def abandon(self, engine: Engine) -> None:
        self._end()

    def _begin(self, engine: Any) -> None:
        parameters = {name: p for name, p in engine.network.named_parameters() if p.requires_grad}
        context = RoundContext.of(engine)
        names = list(parameters) if context is None else [name for name in context.shared_keys if name in parameters]
        self._held = [(parameters[name], parameters[name].detach().clone()) for name in names]

    def _end(self) -> None:
        self._held = []

    @torch.no_grad()
    def __call__(self, engine: Any) -> None:
        pairs = [(p.detach(), start, p.grad) for p, start in self._held if p.grad is not None]
        if not pairs:
            return
        # the loss was scaled before its backward pass; this reads one number back, as the scaler's own step does
        scale = engine.scaler.get_scale() if engine.amp and engine.scaler is not None else 1.0
        weights, starts, gradients = (list(column) for column in zip(*pairs, strict=True))
        torch._foreach_add_(
            gradients, torch._foreach_sub(weights, starts), alpha=self.mu * scale / engine.accumulation_steps
        )
