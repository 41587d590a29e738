# SPDX-License-Identifier: Apache-2.0
"""Convolutions whose kernel is mixed per example from several experts by a small router (IOP-FL, outside part)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn
from torch.nn import functional as F

from fedmonai.errors import ConfigError

__all__ = ["FORMS", "RoutedConv2d", "RoutedConvTranspose2d", "Router"]

FORMS = ("grouped", "sum")


class Router(nn.Module):
    """Mixing weights of one layer, per example: average pool, Linear C to 2C, dropout, Linear 2C to experts, sigmoid.

    As in the authors' program there is no activation between the two linear layers, and each weight lies in (0, 1);
    their sum need not be one.

    >>> Router(channels=4, num_experts=3)(torch.zeros(2, 4, 8, 8)).shape
    torch.Size([2, 3])

    Shape: (batch, channels, H, W) to (batch, num_experts).
    """

    def __init__(self, channels: int, num_experts: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 2 * channels)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(2 * channels, num_experts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(self.dropout(self.fc1(x.mean(dim=(2, 3))))))

    @torch.no_grad()
    def initialize(self, generator: torch.Generator, share: float) -> None:
        """Draw the usual initial weights of a linear layer from ``generator``.

        The last bias is set such that every expert starts near ``share``, in (0, 1). In the authors' program it is
        drawn as well, and shares start near 0.5.
        """
        for linear in (self.fc1, self.fc2):
            bound = 1 / math.sqrt(linear.in_features)
            for tensor in (linear.weight, linear.bias):
                # drawn on the CPU, so that a seed means the same weights on every device
                tensor.copy_(torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator))
        self.fc2.bias.fill_(math.log(share / (1 - share)))


class _RoutedConv(nn.Module):
    """What the two routed convolutions share: the experts, the router and the choice of form."""

    def __init__(
        self,
        in_channels: int,
        weight_shape: Sequence[int],
        out_channels: int,
        num_experts: int,
        bias: bool,
        dropout: float,
        form: str,
    ) -> None:
        super().__init__()
        if num_experts < 1:
            raise ConfigError(f"a routed convolution needs at least one expert, got num_experts={num_experts}")
        if form not in FORMS:
            raise ConfigError(f"routing form {form!r} is not known: use one of {', '.join(FORMS)}")
        self.form = form
        self.num_experts = num_experts
        self.out_channels = out_channels
        self.router = Router(in_channels, num_experts, dropout)
        # buffers: the experts are saved with the network and moved with it, and no optimizer ever gets them
        self.register_buffer("expert_weights", torch.zeros(num_experts, *weight_shape))
        self.register_buffer("expert_biases", torch.zeros(num_experts, out_channels) if bias else None)

    if TYPE_CHECKING:  # torch.jit.script cannot read postponed annotations of a class
        expert_weights: Tensor
        expert_biases: Tensor | None

    def extra_repr(self) -> str:
        return f"{self.num_experts} experts of {tuple(self.expert_weights.shape[1:])}, form={self.form}"

    def mix(self, shares: Tensor) -> tuple[Tensor, Tensor | None]:
        """Kernels of the batch, one product for all examples: (batch * first kernel axis, ...) and the biases."""
        experts = self.expert_weights
        size = [shares.shape[0] * experts.shape[1], experts.shape[2], experts.shape[3], experts.shape[4]]
        weight = torch.mm(shares, experts.flatten(1)).view(size)
        biases = self.expert_biases
        if biases is None:
            return weight, None
        return weight, torch.mm(shares, biases).view(-1)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x)
        if self.form == "grouped":
            return self.forward_grouped(x, shares)
        return self.forward_sum(x, shares)

    def forward_grouped(self, x: Tensor, shares: Tensor) -> Tensor:
        """Mix the kernels of the batch, then apply them all at once."""
        return self.convolve_grouped(x, shares)

    def convolve_grouped(self, x: Tensor, shares: Tensor) -> Tensor:
        """One convolution with one group per example."""
        batch, channels, rows, columns = x.shape
        weight, bias = self.mix(shares)
        y = self.convolve(x.reshape(1, batch * channels, rows, columns), weight, bias, batch)
        return y.reshape(batch, self.out_channels, y.shape[2], y.shape[3])

    def forward_sum(self, x: Tensor, shares: Tensor) -> Tensor:
        """Convolve with every expert, then mix the results: no kernel depends on the data, which ONNX needs."""
        biases = self.expert_biases
        y = shares[:, 0, None, None, None] * self.convolve(
            x, self.expert_weights[0], None if biases is None else biases[0], 1
        )
        for expert in range(1, self.num_experts):
            bias = None if biases is None else biases[expert]
            y = y + shares[:, expert, None, None, None] * self.convolve(x, self.expert_weights[expert], bias, 1)
        return y


class RoutedConv2d(_RoutedConv):
    r"""2-D convolution with the kernel :math:`\sum_e r_e(x) W_e` for each example (bias likewise).

    Jiang et al., IOP-FL (IEEE TMI 2023), test-time routing. ``r`` is the output of a :class:`Router` on the layer's
    input. The experts ``expert_weights`` (experts, out, in / groups, kh, kw) and ``expert_biases`` (experts, out) are
    buffers: only the router trains. The authors' program loops over the examples; here the whole batch is one
    grouped convolution. Both forms are the same function:

    - ``grouped``: kernels mixed, one convolution with ``batch`` groups (on small maps one batched matrix product);
      fast, exports to TorchScript by script.
    - ``sum``: one convolution per expert, outputs mixed; ``num_experts`` times the arithmetic, exports to ONNX.

    A single expert with router weight 1 is the plain convolution.

    >>> layer = RoutedConv2d(3, 8, kernel_size=3, num_experts=4, padding=1)
    >>> layer(torch.zeros(2, 3, 16, 16)).shape, layer.expert_weights.shape
    (torch.Size([2, 8, 16, 16]), torch.Size([4, 8, 3, 3, 3]))

    Raises:
        ConfigError: no expert, or an unknown form.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        num_experts: int,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        dropout: float = 0.2,
        form: str = "grouped",
    ) -> None:
        sides = list(ensure_tuple_rep(kernel_size, 2))
        super().__init__(
            in_channels, (out_channels, in_channels // groups, *sides), out_channels, num_experts, bias, dropout, form
        )
        self.kernel_size = sides
        self.stride = list(ensure_tuple_rep(stride, 2))
        self.padding = list(ensure_tuple_rep(padding, 2))
        self.dilation = list(ensure_tuple_rep(dilation, 2))
        self.groups = groups

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups * self.groups)

    def forward_grouped(self, x: Tensor, shares: Tensor) -> Tensor:
        """As in the base class, but a batched matrix product where output channels outnumber pixels two to one.

        There the kernels are most of the data: the product reads them in place, a convolution first copies them into
        another layout.
        """
        rows = self.output_size(x.shape[2], 0)
        columns = self.output_size(x.shape[3], 1)
        if self.groups > 1 or 2 * rows * columns > self.out_channels:
            return self.convolve_grouped(x, shares)
        weight, bias = self.mix(shares)
        patches = F.unfold(x, self.kernel_size, self.dilation, self.padding, self.stride)  # type: ignore[arg-type]
        y = torch.bmm(weight.view(x.shape[0], self.out_channels, -1), patches)
        if bias is not None:
            y = y + bias.view(x.shape[0], self.out_channels, 1)
        return y.view(x.shape[0], self.out_channels, rows, columns)

    def output_size(self, size: int, axis: int) -> int:
        """Rows (axis 0) or columns (axis 1) of the output for an input of ``size``."""
        span = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        return (size + 2 * self.padding[axis] - span) // self.stride[axis] + 1


class RoutedConvTranspose2d(_RoutedConv):
    """2-D transposed convolution with a kernel mixed per example: see :class:`RoutedConv2d`.

    ``expert_weights`` is (experts, in, out / groups, kh, kw).

    >>> RoutedConvTranspose2d(8, 4, kernel_size=2, num_experts=3, stride=2)(torch.zeros(2, 8, 5, 5)).shape
    torch.Size([2, 4, 10, 10])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        num_experts: int,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        dropout: float = 0.2,
        form: str = "grouped",
    ) -> None:
        shape = (in_channels, out_channels // groups, *ensure_tuple_rep(kernel_size, 2))
        super().__init__(in_channels, shape, out_channels, num_experts, bias, dropout, form)
        self.stride = list(ensure_tuple_rep(stride, 2))
        self.padding = list(ensure_tuple_rep(padding, 2))
        self.output_padding = list(ensure_tuple_rep(output_padding, 2))
        self.dilation = list(ensure_tuple_rep(dilation, 2))
        self.groups = groups

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        return F.conv_transpose2d(
            x, weight, bias, self.stride, self.padding, self.output_padding, groups * self.groups, self.dilation
        )
