# SPDX-License-Identifier: Apache-2.0
r"""IOP-FL: personal models inside the federation, adaptation without labels outside of it.

Jiang et al., IOP-FL: Inside-Outside Personalization for Federated Medical Image Segmentation (IEEE TMI 2023). Inside,
site k keeps a moving average of its own models beside the global one, which it never trains on or sends:

.. math:: P_k \leftarrow \alpha P_k + (1 - \alpha) W_k,

:math:`W_k` what it has trained in the round, before the server averages (:class:`PersonalModel`). The server half is
the mean by samples of :class:`~fedmonai.methods.averaging.WeightedMean`. Outside, a network that is routed over the
global and all personal models (:mod:`fedmonai.networks.routed`) learns its routing on a new site's images by the losses
of :mod:`fedmonai.losses.adaptation`; :class:`fedmonai.handlers.adaptation.AdaptationEvaluator` scores it after every
pass, and keeps an adaptation that would begin on unsure predictions from starting.

Deviations: in the authors' program the first :math:`P_k` shares memory with the live model, so that it changes while
other sites train, and here it is a copy; there the best pass of an adaptation is picked by the labels it does without,
and here the last one counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.protocol import SiteHandler

__all__ = ["PersonalModel"]


class PersonalModel(SiteHandler):
    r"""Personal model: :math:`P_k \leftarrow \alpha P_k + (1 - \alpha) W_k` after local training.

    An average of what the site trained. P_k = W_k in the site's first round. Float tensors are averaged, BatchNorm
    statistics included; integer counters are not part of P_k. The site evaluates P_k beside the global model, keeps it
    with its state, and puts the old one back after a local training that failed.

    Args:
        alpha: share of the past, in [0, 1). The paper's 0.1; 0 makes P_k the last local model.

    Example:
        >>> from types import SimpleNamespace
        >>> network, handler = torch.nn.Linear(1, 1), PersonalModel(alpha=0.5)
        >>> for weight in (0.0, 1.0):
        ...     _ = network.weight.data.fill_(weight)
        ...     handler(SimpleNamespace(network=network))
        >>> handler.personal_weights({})["weight"].item()
        0.5

    Raises:
        ConfigError: when ``alpha`` is out of range.
    """

    def __init__(self, alpha: float = 0.1) -> None:
        if not 0 <= alpha < 1:
            raise ConfigError(f"personal_alpha is {alpha}; give a share of the past of at least 0 and below 1.")
        self.alpha = alpha
        self._averaged: dict[str, Tensor] = {}

    def personal_weights(self, received: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """P_k as a state dict of float tensors; ``None`` before the site's first round."""
        return self._averaged or None

    def attach(self, engine: Engine) -> None:
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
