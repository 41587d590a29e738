# SPDX-License-Identifier: Apache-2.0
"""The 2-D segmentation U-Net of IOP-FL: batch normalization, max pooling, transposed convolutions."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedmonai.errors import ConfigError

__all__ = ["SegmentationUNet"]


class SegmentationUNet(nn.Module):
    """U-Net of Jiang et al., IOP-FL (IEEE TMI 2023), for 2-D or 2.5-D segmentation (neighboring slices as channels).

    A block is twice [3x3 convolution without bias, BatchNorm, ReLU]; 2x2 max pooling; 2x2 transposed convolution with
    stride 2 and bias; concatenation [up, skip]; a last 1x1 convolution. With 32 channels and 4 levels the widths are
    32, 64, 128, 256 and 512 at the bottleneck (7.76 million parameters).

    >>> SegmentationUNet(base_channels=4, num_pool=2)(torch.zeros(1, 3, 20, 18)).shape
    torch.Size([1, 2, 20, 18])

    Args:
        in_channels: channels of the image; 3 = the slice between its two neighbors.
        out_channels: number of classes, background included.
        base_channels: width of the first level; each level below doubles it.
        num_pool: number of pooling levels. The image must measure at least ``2 ** num_pool`` pixels a side.

    Shape: (batch, in_channels, H, W) to logits (batch, out_channels, H, W). Sides that ``2 ** num_pool`` does not
    divide are allowed (the authors' program fails there): the last row or column of the smaller map is repeated
    before the concatenation.

    Raises:
        ConfigError: a width, a number of channels or of levels below 1.
    """

    def __init__(self, in_channels: int = 3, out_channels: int = 2, base_channels: int = 32, num_pool: int = 4) -> None:
        super().__init__()
        for name, value in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("base_channels", base_channels),
            ("num_pool", num_pool),
        ):
            if value < 1:
                raise ConfigError(f"SegmentationUNet: {name} is {value}, it must be at least 1")
        widths = [base_channels * 2**level for level in range(num_pool + 1)]
        self.encoder = Encoder(in_channels, widths)
        self.decoder = Decoder(widths, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        bottom, skips = self.encoder(x)
        return self.decoder(bottom, skips)


class ConvBlock(nn.Module):
    """Twice [3x3 convolution without bias, BatchNorm, ReLU]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)))


class Encoder(nn.Module):
    """Contracting path: one block per level and the bottleneck; returns its output and the maps to concatenate."""

    def __init__(self, in_channels: int, widths: list[int]) -> None:
        super().__init__()
        inputs = [in_channels, *widths[:-2]]
        self.blocks = nn.ModuleList([ConvBlock(i, o) for i, o in zip(inputs, widths[:-1], strict=True)])
        self.bottleneck = ConvBlock(widths[-2], widths[-1])

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        return self.bottleneck(x), skips


class UpBlock(nn.Module):
    """Double the size, concatenate [up, skip] and apply a block."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.block = ConvBlock(2 * out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        rows, columns = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        if rows > 0 or columns > 0:
            x = F.pad(x, [0, columns, 0, rows], mode="replicate")
        return self.block(torch.cat([x, skip], dim=1))


class Decoder(nn.Module):
    """Expanding path and the last 1x1 convolution ``head``."""

    def __init__(self, widths: list[int], out_channels: int) -> None:
        super().__init__()
        levels = list(reversed(widths))
        self.blocks = nn.ModuleList([UpBlock(i, o) for i, o in pairwise(levels)])
        self.head = nn.Conv2d(widths[0], out_channels, 1)

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        level = len(skips) - 1
        for block in self.blocks:
            x = block(x, skips[level])
            level -= 1
        return self.head(x)
