# SPDX-License-Identifier: Apache-2.0
"""The U-Net of the fastMRI baseline, split into an encoder and a decoder that federated methods treat separately."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedmonai.errors import ConfigError

__all__ = ["ReconstructionUNet", "pooled_latent"]

NORMS = ("instance", "instance_affine", "batch")


class ReconstructionUNet(nn.Module):
    """U-Net for image-to-image MR reconstruction (Ronneberger et al. 2015; Zbontar et al., arXiv 1811.08839).

    ``num_pool`` levels of two [3x3 convolution without bias, InstanceNorm without affine, LeakyReLU 0.2, Dropout2d],
    2x2 average pooling down, 2x2 transposed convolution [+ InstanceNorm, LeakyReLU 0.2] up, concatenation (up, skip), a
    last 1x1 convolution with bias. 7,756,097 parameters at the defaults, all keys under ``encoder.`` or ``decoder.``;
    ``encoder.bottleneck`` returns the latent features (B, base_channels * 2^num_pool, H // 2^num_pool,
    W // 2^num_pool).

    >>> ReconstructionUNet(base_channels=4, num_pool=2)(torch.zeros(1, 1, 21, 16)).shape
    torch.Size([1, 1, 21, 16])

    Args:
        in_channels: channels of the input image.
        out_channels: channels of the output image.
        base_channels: channels of the first level; each level doubles them.
        num_pool: number of poolings.
        dropout: probability that a feature map is dropped.
        residual: add the input to the output (needs as many output as input channels). The last convolution then
            starts at zero, so that training starts from the zero-filled image, and is called
            ``decoder.final_residual`` instead of ``decoder.final``: weights trained one way cannot be loaded the other
            way by mistake.
        norm: ``instance`` (the baseline's; nothing to learn, so nothing that FedBN could keep at a site),
            ``instance_affine`` (learned scale and shift) or ``batch`` (these and running statistics).

    Raises:
        ConfigError: an argument is out of range, or (in eager mode) the image is too small for ``num_pool`` poolings.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        base_channels: int = 32,
        num_pool: int = 4,
        dropout: float = 0.0,
        residual: bool = False,
        norm: str = "instance",
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ConfigError(f"norm is '{norm}'; choose one of {', '.join(NORMS)}.")
        if min(in_channels, out_channels, base_channels, num_pool) < 1:
            raise ConfigError(
                f"in_channels {in_channels}, out_channels {out_channels}, base_channels {base_channels} and num_pool "
                f"{num_pool} must all be 1 or more"
            )
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"dropout {dropout} is not allowed: it must lie in [0, 1)")
        if residual and in_channels != out_channels:
            raise ConfigError(f"residual needs out_channels {out_channels} to equal in_channels {in_channels}")
        self.num_pool = num_pool
        self.residual = residual
        self.encoder = _Encoder(in_channels, base_channels, num_pool, dropout, norm)
        self.decoder = _Decoder(out_channels, base_channels, num_pool, dropout, residual, norm)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W); H and W may be odd."""
        # Neither TorchScript nor an exported graph can hold the check; the graph fails in its pooling instead.
        if not torch.jit.is_scripting() and not torch.compiler.is_compiling():
            self._check_size(image)
        features = self.encoder(image)
        output = self.decoder(features)
        return output + image if self.residual else output

    def _check_size(self, image: Tensor) -> None:
        factor = 2**self.num_pool
        rows, columns = image.shape[-2] // factor, image.shape[-1] // factor
        if rows * columns < 2:  # instance normalization needs two pixels
            raise ConfigError(
                f"an image of {image.shape[-2]} x {image.shape[-1]} is too small for num_pool {self.num_pool}: "
                f"it needs {factor} pixels along one axis and {2 * factor} along the other"
            )


def pooled_latent(features: Tensor) -> Tensor:
    """Average bottleneck features (B, C, h, w) over a 2 x 2 grid: (B, 4 C), 2048 values for the default network.

    The latent code z that FL-MRCM aligns between sites (Guo et al., CVPR 2021). Where a side is odd the quarters share
    its middle line, as in ``adaptive_avg_pool2d``, which has no deterministic gradient on a GPU.
    """
    rows, columns = ((size + 1) // 2 for size in features.shape[-2:])
    halves = features[..., :rows, :], features[..., -rows:, :]
    quarters = [half[..., part].mean((-2, -1)) for half in halves for part in (slice(columns), slice(-columns, None))]
    return torch.stack(quarters, dim=2).flatten(1)


def _normalization(norm: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.InstanceNorm2d(channels, affine=norm != "instance")


class _ConvBlock(nn.Sequential):
    """Two 3x3 convolutions, each with normalization, LeakyReLU and Dropout2d.

    The activation is not in place: instance normalization returns a view, and what is written into a view costs its
    backward pass three further copies of the layer. The gradients are the same to the bit.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float, norm: str) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [
                nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, bias=False),
                _normalization(norm, out_channels),
                nn.LeakyReLU(0.2),
                nn.Dropout2d(dropout),
            ]
        super().__init__(*layers)


class _Encoder(nn.Module):
    """Down blocks and bottleneck; returns the features of all levels, finest first, the bottleneck last."""

    def __init__(self, in_channels: int, base_channels: int, num_pool: int, dropout: float, norm: str) -> None:
        super().__init__()
        widths = [in_channels, *(base_channels * 2**level for level in range(num_pool + 1))]
        blocks = [_ConvBlock(before, after, dropout, norm) for before, after in pairwise(widths)]
        self.down, self.bottleneck = nn.ModuleList(blocks[:-1]), blocks[-1]

    def forward(self, image: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for block in self.down:
            image = block(image)
            features.append(image)
            image = F.avg_pool2d(image, kernel_size=2)
        features.append(self.bottleneck(image))
        return features


class _Decoder(nn.Module):
    """Up blocks and the last convolution; takes the features of :class:`_Encoder`."""

    __constants__ = ("residual",)  # so that TorchScript compiles only the branch that exists

    def __init__(
        self, out_channels: int, base_channels: int, num_pool: int, dropout: float, residual: bool, norm: str
    ) -> None:
        super().__init__()
        self.residual = residual
        levels = reversed(range(num_pool))
        self.up = nn.ModuleList([_UpBlock(base_channels * 2**level, dropout, norm) for level in levels])
        final = nn.Conv2d(base_channels, out_channels, kernel_size=1)
        if residual:
            for parameter in final.parameters():
                nn.init.zeros_(parameter)
            self.final_residual = final
        else:
            self.final = final

    def forward(self, features: list[Tensor]) -> Tensor:
        image = features[-1]
        for index, block in enumerate(self.up):
            image = block(image, features[len(features) - 2 - index])
        if self.residual:
            return self.final_residual(image)
        return self.final(image)


class _UpBlock(nn.Module):
    """Double the size by a transposed convolution, join the skip features, convolve twice."""

    def __init__(self, channels: int, dropout: float, norm: str) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.ConvTranspose2d(2 * channels, channels, kernel_size=2, stride=2, bias=False),
            _normalization(norm, channels),
            nn.LeakyReLU(0.2),
        )
        self.conv = _ConvBlock(2 * channels, channels, dropout, norm)

    def forward(self, image: Tensor, skip: Tensor) -> Tensor:
        return self.conv(torch.cat((_reflect_to(self.up(image), skip), skip), dim=1))


def _reflect_to(image: Tensor, skip: Tensor) -> Tensor:
    """Restore by reflection the last row and column, which pooling drops from an odd size."""
    rows, columns = skip.shape[-2] - image.shape[-2], skip.shape[-1] - image.shape[-1]
    # In eager mode an even size skips the copy (and its backward pass, which has no deterministic form on CUDA). An
    # exported graph must not branch, so that it holds for even and odd sizes alike.
    if not torch.jit.is_scripting() and not torch.compiler.is_compiling() and rows == 0 and columns == 0:
        return image
    return F.pad(image, [0, columns, 0, rows], mode="reflect")
