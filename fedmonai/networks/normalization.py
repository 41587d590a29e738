# SPDX-License-Identifier: Apache-2.0
"""Normalization layers at test time: the statistics that they use, and their parameters, which may adapt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai.inferers import Inferer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fedmonai.errors import ConfigError

__all__ = ["STATISTICS", "RunningBatchNorm", "StatisticsInferer", "adapt_normalization"]

STATISTICS = ("batch", "running", "site")
_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm)


class RunningBatchNorm(_BatchNorm):
    """Batch normalization that uses its running statistics in training mode too, and never changes them.

    ``nn.BatchNorm2d`` in training mode normalizes with the batch and moves its running statistics, so that a network
    whose parameters adapt to a new site would be measured with statistics other than those it adapted with.

    >>> import torch
    >>> layer = RunningBatchNorm(1, affine=False).train()
    >>> round(float(layer(torch.full((2, 1, 4, 4), 3.0)).mean()), 2), layer.running_mean.tolist()
    (3.0, [0.0])

    Shape: (batch, channels, ...), any number of axes.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def adapt_normalization(network: nn.Module, statistics: str = "batch") -> nn.Module:
    """Freeze ``network`` but for the affine parameters of its normalization layers, and choose their statistics.

    >>> network = adapt_normalization(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), "batch")
    >>> [name for name, parameter in network.named_parameters() if parameter.requires_grad], network[1].running_mean
    (['1.weight', '1.bias'], None)

    Args:
        network: changed in place and returned; names of parameters stay.
        statistics: ``batch`` normalizes with the batch at hand in evaluation, too, and drops the running statistics
            (Nado et al., Evaluating prediction-time batch normalization, 2020; so do TENT, SAR and IOP-FL).
            ``running`` keeps those of training (:class:`RunningBatchNorm`). ``site`` keeps them until the first batch
            passes in training mode, which replaces them; from then on all batches count alike (AdaBN, Li et al.,
            Revisiting batch normalization for practical domain adaptation, 2016). The result is a plain network with
            the site's statistics. Unlike AdaBN's the variance is the mean of the batches' variances, so what differs
            between batches is left out.

    Raises:
        ConfigError: unknown ``statistics``, or a network without running statistics where they are needed.
    """
    if statistics not in STATISTICS:
        raise ConfigError(f"statistics is {statistics!r}; choose one of {', '.join(STATISTICS)}.")
    network.requires_grad_(False)
    for module in network.modules():
        if isinstance(module, _NORMS):
            module.requires_grad_(True)
        if statistics == "batch" and isinstance(module, _BatchNorm | _InstanceNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
        elif statistics != "batch" and isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ConfigError(f"statistics is {statistics!r}, but the network has no running statistics; choose batch.")
        elif statistics == "site" and isinstance(module, _BatchNorm):
            module.momentum = None  # the cumulative mean
            module.num_batches_tracked.zero_()  # type: ignore[union-attr]
    if statistics == "running":
        _keep_running(network)
    return network


def _keep_running(network: nn.Module) -> None:
    for name, child in network.named_children():
        if isinstance(child, _BatchNorm) and not isinstance(child, RunningBatchNorm):
            kept = RunningBatchNorm(child.num_features, child.eps, child.momentum, child.affine)
            kept.load_state_dict(child.state_dict())
            setattr(network, name, kept.to(child.running_mean).train(child.training))
        else:
            _keep_running(child)


class StatisticsInferer(Inferer):
    """Inference in training mode, so that batch normalization gathers its running statistics; no gradient is needed.

    With the statistics ``site`` of :func:`adapt_normalization` one pass of an evaluator over a site's images adapts a
    network to them. The network's mode is restored.

    >>> import torch
    >>> network = nn.BatchNorm2d(1, momentum=None).eval()
    >>> _ = StatisticsInferer()(torch.full((2, 1, 4, 4), 3.0), network)
    >>> network.running_mean.tolist(), network.training
    ([3.0], False)
    """

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Return the network's output for ``inputs``."""
        if not isinstance(network, nn.Module):
            raise ConfigError(f"StatisticsInferer needs a network (torch.nn.Module), not {type(network).__name__}.")
        training = network.training
        network.train()
        try:
            return network(inputs, *args, **kwargs)
        finally:
            network.train(training)
