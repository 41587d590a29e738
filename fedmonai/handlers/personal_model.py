# SPDX-License-Identifier: Apache-2.0
"""A site's personal model: the moving average of its own local models over the rounds (IOP-FL, inside part)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from fedmonai.errors import ConfigError

__all__ = ["PersonalModel"]


class PersonalModel:
    r"""Averages what a site trained: :math:`P_k \leftarrow \alpha P_k + (1 - \alpha) W_k` after local training.

    Jiang et al., IOP-FL (IEEE TMI 2023): W_k is the site's model at the end of its turn, before the server averages;
    P_k = W_k in the site's first round. Float tensors are averaged, BatchNorm statistics included; integer counters
    are not part of P_k. P_k never trains, and never leaves the site: this handler contributes nothing to a message.
    ``SiteAlgo`` evaluates it beside the global model (:attr:`personal_weights`), keeps it with the site's state, and
    puts the old one back after a failed turn.

    The authors' program lets the first P_k share memory with the live model, so that it changes while other sites
    train; here it is a copy.

    Args:
        alpha: share of the past, in [0, 1). The paper's 0.1; 0 makes P_k the last local model.

    Raises:
        ConfigError: when ``alpha`` is out of range.
    """

    def __init__(self, alpha: float = 0.1) -> None:
        if not 0 <= alpha < 1:
            raise ConfigError(f"personal_alpha is {alpha}; give a share of the past of at least 0 and below 1.")
        self.alpha = alpha
        self._averaged: dict[str, Tensor] = {}

    @property
    def personal_weights(self) -> dict[str, Tensor] | None:
        """P_k as a state dict of float tensors; ``None`` before the site's first round."""
        return self._averaged or None

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        trained = engine.network.state_dict()  # type: ignore[attr-defined]
        floats = {key: tensor for key, tensor in trained.items() if tensor.is_floating_point()}
        if not self._averaged:
            self._averaged = {key: tensor.detach().clone() for key, tensor in floats.items()}
            return
        # a state that came from a file lies on the CPU until here
        self._averaged = {key: self._averaged[key].to(tensor.device) for key, tensor in floats.items()}
        past, now = list(self._averaged.values()), list(floats.values())
        torch._foreach_mul_(past, self.alpha)
        torch._foreach_add_(past, now, alpha=1 - self.alpha)

    def state_dict(self) -> dict[str, Any]:
        """The average; empty before the first round."""
        return {"averaged": dict(self._averaged)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over copies of a state written by :meth:`state_dict`."""
        self._averaged = {key: tensor.detach().clone() for key, tensor in state["averaged"].items()}
