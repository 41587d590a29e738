# SPDX-License-Identifier: Apache-2.0
"""Reconstruction in two domains: a U-Net on k-space, data consistency, a U-Net on the image."""

from __future__ import annotations

import torch
from monai.networks.blocks.fft_utils_t import ifftn_centered_t
from torch import Tensor, nn

from fedmonai.errors import ConfigError
from fedmonai.networks.reconstruction_unet import ReconstructionUNet

__all__ = ["DualDomainUNet"]

# keeps the gradient of a magnitude finite at 0; images have a standard deviation of 1 here
_EPS = 1e-12


class DualDomainUNet(nn.Module):
    """Reconstruction network of two U-Nets: F on k-space, U on the image.

    k = M y + (1 - M) F(y), x = |IFFT(k)|, output U(x). The dual-domain variant that Feng et al. (TMI 2023, arXiv
    2112.05752) describe and their release names but does not contain: this definition is ours. y are the measured
    samples with the sampling mask M; what was measured is not changed by F. F works on the real and imaginary part as
    two channels, coil by coil, and returns y + its output; its last convolution starts at zero, so that training starts
    from the zero-filled image. Tensor names begin with ``kspace_net.encoder``, ``kspace_net.decoder``,
    ``image_net.encoder``, ``image_net.decoder``.

    >>> network = DualDomainUNet(base_channels=4, num_pool=2)
    >>> kspace, mask = torch.randn(1, 2, 16, 16, dtype=torch.complex64), torch.ones(1, 1, 16, 16)
    >>> mean, std = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    >>> network(torch.zeros(1, 1, 12, 12), kspace, mask, mean, std).shape
    torch.Size([1, 1, 12, 12])

    Args:
        base_channels: channels of the first level of both U-Nets; 15,512,515 parameters at 32.
        num_pool: number of poolings of both.
        dropout: probability that a feature map is dropped, in both.
        residual: whether U adds its input to its output.

    Raises:
        ConfigError: an argument is out of range, or k-space or image are too small for ``num_pool`` poolings.
    """

    def __init__(
        self, base_channels: int = 32, num_pool: int = 4, dropout: float = 0.0, residual: bool = False
    ) -> None:
        super().__init__()
        self.kspace_net = ReconstructionUNet(2, 2, base_channels, num_pool, dropout, residual=True)
        for parameter in self.kspace_net.decoder.final_residual.parameters():
            nn.init.zeros_(parameter)
        self.image_net = ReconstructionUNet(1, 1, base_channels, num_pool, dropout, residual=residual)

    def forward(self, image: Tensor, kspace: Tensor, mask: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Reconstruct; the arguments are what :class:`fedmonai.transforms.batch.PrepareKspace` returns ``with_kspace``.

        Args:
            image: normalized zero-filled image (B, 1, h, w); it gives the size of the output.
            kspace: masked k-space, complex64 (B, coils, H, W).
            mask: 0 or 1, (B, 1, H, W).
            mean: of the zero-filled image before it was normalized, (B, 1, 1, 1).
            std: its standard deviation, likewise.

        Returns:
            (B, 1, h, w), normalized as ``image`` is.
        """
        scale = std + 1e-11
        completed = self.complete(kspace / scale, mask)
        planes = ifftn_centered_t(torch.view_as_real(completed), spatial_dims=2, is_complex=True)
        magnitude = _cropped((planes.square().sum((1, -1)) + _EPS).sqrt().unsqueeze(1), image)
        return self.image_net(magnitude - mean / scale)

    def complete(self, kspace: Tensor, mask: Tensor) -> Tensor:
        """Fill in what was not measured: (B, coils, H, W) complex to the same, unchanged where ``mask`` is 1."""
        batch, coils, rows, columns = kspace.shape
        planes = torch.view_as_real(kspace).permute(0, 1, 4, 2, 3).reshape(batch * coils, 2, rows, columns)
        filled = self.kspace_net(planes).float().view(batch, coils, 2, rows, columns).permute(0, 1, 3, 4, 2)
        return torch.where(mask > 0, kspace, torch.view_as_complex(filled.contiguous()))


def _cropped(magnitude: Tensor, image: Tensor) -> Tensor:
    """The central part of ``image``'s size."""
    (height, width), (rows, columns) = magnitude.shape[-2:], image.shape[-2:]
    if rows > height or columns > width:
        raise ConfigError(f"an image of {rows} x {columns} is larger than its k-space of {height} x {width}")
    return magnitude.narrow(-2, (height - rows) // 2, rows).narrow(-1, (width - columns) // 2, columns)
