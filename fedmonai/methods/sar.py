# SPDX-License-Identifier: Apache-2.0
r"""SAR: adaptation at test time by sharpness-aware and reliable entropy minimization.

Niu et al., Towards stable test-time adaptation in dynamic wild world (ICLR 2023). Of the batch at hand only pixels with
an entropy below :math:`E_0` count, and the affine parameters :math:`\theta` of the normalization layers descend the
gradient at the worst place in their neighborhood (equations 2 to 4 of the paper):

.. math:: \theta \leftarrow \theta - \eta \nabla L(\theta + \epsilon), \quad
          \epsilon = \rho \, \nabla L(\theta) / \lVert \nabla L(\theta) \rVert_2.

A prediction whose mean reliable entropy has become very small has usually collapsed to one class: the model is reset to
its start.

Deviations, for segmentation: a pixel is what an image is in the paper. Entropies are given as shares of the largest,
log K, for the paper's numbers belong to 1000 classes: :math:`E_0` = 0.4 log K as there; recovery below 0.2 becomes
0.2 / log 1000 = 0.029 of log K. The layers that the paper leaves out as the top ones of its classifiers have no
counterpart in a U-Net: all normalization layers adapt.
"""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from monai.utils import CommonKeys
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.losses.adaptation import reliable_entropy

__all__ = ["SharpnessAwareStep"]

_PAST = 0.9  # of the moving average of the loss


class SharpnessAwareStep:
    """Sharpness-aware step: the gradient is taken in the worst place nearby, and a collapsed network is put back.

    For a MONAI trainer with the loss :class:`fedmonai.losses.adaptation.EntropyLoss` of the same ``threshold``, whose
    network has its adapting parameters marked (:func:`fedmonai.networks.normalization.adapt_normalization`).

    Args:
        threshold: share of the largest entropy below which a pixel counts; the paper's 0.4.
        rho: radius of the neighborhood, the paper's 0.05; 0 takes the gradient again where it was.
        recovery: share of the largest entropy; when the moving average of the loss falls below, the network and the
            optimizer are put back to their start. 0 never does.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(self, threshold: float = 0.4, rho: float = 0.05, recovery: float = 0.029) -> None:
        if not 0 < threshold <= 1 or rho < 0 or not 0 <= recovery < 1:
            raise ConfigError(
                f"SAR: threshold {threshold}, rho {rho}, recovery {recovery}; give 0 < threshold <= 1, rho >= 0 and "
                "0 <= recovery < 1."
            )
        self.threshold = threshold
        self.rho = rho
        self.recovery = recovery
        #: how often the model was put back
        self.recoveries = 0
        self._average: float | None = None
        self._start: list[Tensor] = []

    def attach(self, engine: Engine) -> None:
        """Register with the adapting trainer."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._sharpen)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._recover)

    def _adapting(self, engine: Engine) -> list[Tensor]:
        network = engine.network  # type: ignore[attr-defined]
        return [parameter for parameter in network.parameters() if parameter.requires_grad]

    def _started(self, engine: Engine) -> None:
        self.recoveries, self._average = 0, None
        self._start = [parameter.detach().clone() for parameter in self._adapting(engine)]

    def _sharpen(self, engine: Engine) -> None:
        parameters = [parameter for parameter in self._adapting(engine) if parameter.grad is not None]
        output = engine.state.output
        if not parameters or not isinstance(output, dict):
            return
        before = [parameter.detach().clone() for parameter in parameters]
        norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in parameters]))
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(parameter.grad * (self.rho / (norm + 1e-12)))
        engine.optimizer.zero_grad()
        logits = engine.inferer(output[CommonKeys.IMAGE], engine.network)
        loss = reliable_entropy(logits, self.threshold, among=output[CommonKeys.PRED])
        loss.backward()
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
        value = float(loss.detach())
        if value > 0:  # 0 without a reliable pixel
            self._average = value if self._average is None else _PAST * self._average + (1 - _PAST) * value

    @torch.no_grad()
    def _recover(self, engine: Engine) -> None:
        classes = engine.state.output[CommonKeys.PRED].shape[1]  # type: ignore[index]
        limit = self.recovery * float(torch.tensor(float(classes)).log())
        if self._average is None or self._average >= limit:
            return
        for parameter, value in zip(self._adapting(engine), self._start, strict=True):
            parameter.copy_(value)
        engine.optimizer.state.clear()  # type: ignore[attr-defined]
        self.recoveries, self._average = self.recoveries + 1, None
