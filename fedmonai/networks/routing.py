# SPDX-License-Identifier: Apache-2.0
"""Conversion of any 2-D convolutional network into a routed one built from the models of several sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fedmonai.errors import ConfigError
from fedmonai.networks.normalization import adapt_normalization
from fedmonai.networks.routed import RoutedConv2d, RoutedConvTranspose2d

__all__ = ["ShareRecorder", "build_routed_network", "load_experts", "route_network"]

State = Mapping[str, Tensor]
_ROUTED = (RoutedConv2d, RoutedConvTranspose2d)
_SOURCE = {"expert_weights": "weight", "expert_biases": "bias"}


def route_network(
    network: nn.Module,
    num_experts: int,
    dropout: float = 0.2,
    form: str = "grouped",
    batch_statistics: bool = True,
    initial_share: float | None = None,
    seed: int = 0,
) -> nn.Module:
    """Replace every 2-D convolution and transposed convolution of ``network``, in place, by its routed form.

    All experts start as the network's own weights; :func:`load_experts` or loading a saved routed ``state_dict``
    gives them their values. Only the routers and the affine parameters of the normalization layers keep
    ``requires_grad``: these adapt at test time (Jiang et al., IOP-FL), everything else stays as it is.

    >>> network = route_network(nn.Sequential(nn.Conv2d(1, 2, kernel_size=3)), num_experts=3)
    >>> network[0].expert_weights.shape
    torch.Size([3, 2, 1, 3, 3])

    Args:
        network: any network of ``nn.Conv2d`` and ``nn.ConvTranspose2d`` layers; changed and returned.
        num_experts: number of experts per layer: K personal models and the global one make K + 1. 0 leaves the
            convolutions as they are, so that one config serves plain and routed weights.
        dropout: dropout inside the routers while adapting.
        form: ``grouped`` (default) or ``sum`` for export to ONNX.
        batch_statistics: normalize with the statistics of the batch at hand and drop the running ones, as the method
            does; False keeps the running statistics of the global model, while adapting, too.
        initial_share: weight near which every expert starts, in (0, 1). None is 1 / ``num_experts``, with which the
            first kernels are near the mean of the experts' [ours]. 0.5 is the released start: there the kernels of
            K + 1 experts are (K + 1) / 2 times their mean, and the transposed and the last convolution have no
            normalization behind them that would remove the factor.
        seed: of the generator that draws the routers' initial weights.

    Raises:
        ConfigError: no layer to route, a convolution of another kind, or a value out of range.
    """
    if num_experts == 0:
        return adapt_normalization(network, "batch") if batch_statistics else network
    if initial_share is not None and not 0 < initial_share < 1:
        raise ConfigError(f"initial_share is {initial_share}, it must lie between 0 and 1 (or be null)")
    generator = torch.Generator().manual_seed(seed)
    _replace(network, "", {}, num_experts, dropout, form)
    routed = [module for module in network.modules() if isinstance(module, _ROUTED)]
    if not routed:
        raise ConfigError(f"{type(network).__name__} has no 2-D convolution inside: there is nothing to route")
    adapt_normalization(network, "batch" if batch_statistics else "running")
    for layer in routed:
        layer.router.initialize(generator, 1 / num_experts if initial_share is None else initial_share)
        layer.router.requires_grad_(True)
    return network


def load_experts(network: nn.Module, personal: Mapping[str, State], global_state: State) -> None:
    """Fill a routed network: one expert per personal model in the order of the site names, the global model last.

    Everything that is not routed (normalization and the rest) is taken from the global model.

    Args:
        network: the result of :func:`route_network` with ``len(personal) + 1`` experts.
        personal: the sites' personal models, by site name, as state dictionaries of the plain network.
        global_state: the global model's state dictionary.

    Raises:
        ConfigError: the number of models does not fit, or a model lacks a tensor or has it in another shape.
    """
    names = [*sorted(personal), "global"]
    states = [*(personal[name] for name in sorted(personal)), global_state]
    routed = {name for name, module in network.named_modules() if isinstance(module, _ROUTED)}
    loaded = network.state_dict()
    for key, value in loaded.items():
        layer, _, leaf = key.rpartition(".")
        if layer in routed:
            if len(value) != len(states):
                raise ConfigError(f"the network has {len(value)} experts, but {len(states)} models are given: {names}")
            source = f"{layer}.{_SOURCE[leaf]}"
            tensors = [_entry(state, source, value[0], name) for state, name in zip(states, names, strict=True)]
            loaded[key] = torch.stack([tensor.to(value) for tensor in tensors])
        elif layer.rpartition(".router.")[0] not in routed:
            loaded[key] = _entry(global_state, key, value, "global")
    network.load_state_dict(loaded)


def build_routed_network(
    network: nn.Module,
    personal: Mapping[str, State],
    global_state: State,
    dropout: float = 0.2,
    form: str = "grouped",
    batch_statistics: bool = True,
    initial_share: float | None = None,
    seed: int = 0,
) -> nn.Module:
    """Route ``network`` (changed in place) over the given personal models and the global one.

    :func:`route_network` followed by :func:`load_experts`: see there for the arguments and the errors.
    """
    num_experts = len(personal) + 1
    route_network(network, num_experts, dropout, form, batch_statistics, initial_share, seed)
    load_experts(network, personal, global_state)
    return network


class ShareRecorder:
    """The mean share of every expert, by layer, of what passes through a routed network in a ``with`` block.

    Without routed layers it records nothing.

    Args:
        network: the network.

    Example:
        >>> network = route_network(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 1, 3)), num_experts=4).eval()
        >>> with ShareRecorder(network) as recorder:
        ...     _ = network(torch.zeros(3, 1, 8, 8))
        >>> {layer: tuple(share.shape) for layer, share in recorder.shares().items()}
        {'0': (4,), '1': (4,)}
    """

    def __init__(self, network: nn.Module) -> None:
        self._routers = {name: m.router for name, m in network.named_modules() if isinstance(m, _ROUTED)}
        self._recorded: dict[str, list[Tensor]] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> ShareRecorder:
        self._recorded = {name: [] for name in self._routers}
        for name, router in self._routers.items():
            self._hooks.append(router.register_forward_hook(self._recording(name)))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _recording(self, name: str) -> Any:
        def record(router: nn.Module, inputs: Any, shares: Tensor) -> None:
            self._recorded[name].append(shares.detach())

        return record

    def shares(self) -> dict[str, Tensor]:
        """Mean over the examples, (experts) by layer; layers through which nothing passed are left out."""
        return {name: torch.cat(found).mean(0) for name, found in self._recorded.items() if found}


def _replace(
    module: nn.Module, prefix: str, done: dict[int, nn.Module], num_experts: int, dropout: float, form: str
) -> None:
    """Swap the convolutions among the children of ``module``, depth first; a layer used twice is swapped once."""
    for name, child in list(module.named_children()):
        if isinstance(child, _ConvNd):
            if id(child) not in done:
                done[id(child)] = _routed_copy(child, f"{prefix}{name}", num_experts, dropout, form)
            setattr(module, name, done[id(child)])
        else:
            _replace(child, f"{prefix}{name}.", done, num_experts, dropout, form)


def _routed_copy(conv: _ConvNd, name: str, num_experts: int, dropout: float, form: str) -> nn.Module:
    """The routed layer with the geometry of ``conv``, every expert a copy of its weights."""
    if type(conv) not in (nn.Conv2d, nn.ConvTranspose2d) or conv.padding_mode != "zeros" or conv.padding == "same":
        raise ConfigError(
            f"layer {name} ({conv}) cannot be routed: only plain nn.Conv2d and nn.ConvTranspose2d with zero padding "
            "given in numbers are"
        )
    padding = (0, 0) if isinstance(conv.padding, str) else conv.padding
    shared: dict[str, Any] = {
        "stride": conv.stride,
        "padding": padding,
        "dilation": conv.dilation,
        "groups": conv.groups,
    }
    shared |= {"bias": conv.bias is not None, "dropout": dropout, "form": form}
    sizes = (conv.in_channels, conv.out_channels, conv.kernel_size, num_experts)
    routed: RoutedConv2d | RoutedConvTranspose2d
    if isinstance(conv, nn.ConvTranspose2d):
        routed = RoutedConvTranspose2d(*sizes, output_padding=conv.output_padding, **shared)
    else:
        routed = RoutedConv2d(*sizes, **shared)
    routed.to(conv.weight)
    routed.expert_weights.copy_(conv.weight.detach().expand_as(routed.expert_weights))
    if routed.expert_biases is not None and conv.bias is not None:
        routed.expert_biases.copy_(conv.bias.detach().expand_as(routed.expert_biases))
    return routed.train(conv.training)


def _entry(state: State, key: str, like: Tensor, owner: str) -> Tensor:
    """``state[key]``, checked for presence and shape."""
    if key not in state:
        raise ConfigError(f"model {owner!r} has no tensor {key!r}: is it a model of the same network?")
    if state[key].shape != like.shape:
        raise ConfigError(
            f"model {owner!r}: {key!r} has shape {tuple(state[key].shape)}, the network needs {tuple(like.shape)}; "
            "give the options of the network (base_channels, ...) that it was trained with"
        )
    return state[key]
