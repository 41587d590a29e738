# SPDX-License-Identifier: Apache-2.0
"""U-Net with channel selection per site and auxiliary heads (FedICRA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmonai.errors import ConfigError

__all__ = ["ChannelSelection", "ChannelSelectionOutput", "ChannelSelectionUNet"]


class ChannelSelection(nn.Module):
    """Channel gates of all sites for one set of features (FedICRA, arXiv 2304.05635; gates as in CBAM).

    With e_j the embedding of site j, ``avg`` and ``max`` over the pixels of the features,

        h_j = sigmoid( M(avg || W2 relu(e_j)) + M(max || W2 relu(e_j)) ),    M = linear, relu, linear, without bias.

    In the authors' program the embeddings are the columns of one weight that every site uploads. Here each site's row
    is a parameter of its own, ``site_embeddings.<index>``: where a site sends only its own row (beside the rest of the
    module), no untrained copy of another site enters the average of that row.

    >>> ChannelSelection(num_sites=3, channels=16)(torch.zeros(2, 16, 4, 4)).shape
    torch.Size([3, 2, 16])

    Args:
        num_sites: number of sites S, >= 1.
        channels: channels C of the features, and length of the embeddings.
        reduction: width of the hidden layer of M is ``channels / reduction``.
    """

    def __init__(self, num_sites: int, channels: int = 256, reduction: int = 16) -> None:
        super().__init__()
        if num_sites < 1:
            raise ConfigError(f"ChannelSelection: num_sites is {num_sites}; there must be at least one site")
        # The range of the initial weights of a linear layer with one input per site.
        rows = torch.empty(num_sites, channels).uniform_(-(num_sites**-0.5), num_sites**-0.5)
        self.site_embeddings = nn.ParameterList([nn.Parameter(row.clone()) for row in rows])
        self.project = nn.Linear(channels, channels, bias=False)
        self.squeeze = nn.Linear(2 * channels, channels // reduction, bias=False)
        self.excite = nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Gates ``(S, B, C)`` in (0, 1) of every site for features ``(B, C, H, W)``; one pass, S small products."""
        rows = torch.stack([row for row in self.site_embeddings])  # noqa: C416 (TorchScript has no list(...) here)
        embedding = self.project(torch.relu(rows))
        average = self._mix(features.mean((2, 3)), embedding)
        largest = self._mix(features.amax((2, 3)), embedding)
        return torch.sigmoid(average + largest)

    def _mix(self, pooled: Tensor, embedding: Tensor) -> Tensor:
        sites, images = embedding.shape[0], pooled.shape[0]
        pairs = torch.cat(
            [pooled.unsqueeze(0).expand(sites, -1, -1), embedding.unsqueeze(1).expand(-1, images, -1)], dim=2
        )
        return self.excite(torch.relu(self.squeeze(pairs)))


class ChannelSelectionOutput(NamedTuple):
    """Outputs of a forward pass in training.

    Args:
        logits: ``(B, K, H, W)``.
        auxiliary: ``(B, K, H/4, W/4)``, ``(B, K, H/2, W/2)``, ``(B, K, H, W)``: embeddings for tree filters.
        gates: ``(S, B, C)`` channel gates of all sites for the same features.
        image: the input, for losses that compare intensities or colors.
    """

    logits: Tensor
    auxiliary: list[Tensor]
    gates: Tensor
    image: Tensor


class ChannelSelectionUNet(nn.Module):
    """U-Net whose bottleneck is weighted per site and channel: ``x <- x (1 + h_site)`` (arXiv 2304.05635).

    :meth:`forward` returns the logits, also when scripted or exported. :meth:`training_forward` returns logits,
    auxiliary maps and the gates of all sites from a single pass of the encoder; with ``training_outputs`` a call of
    the network in training mode does the same, as trainers and distributed wrappers need it.

    Names of parameters begin with ``encoder.``, ``decoder.up1.`` .. ``decoder.up4.``, ``decoder.out_conv.``,
    ``auxiliary_heads.`` and ``channel_selection.``; the site's own embedding is
    ``channel_selection.site_embeddings.<site>``. Defaults have 2,337,250 + 79,104 parameters for 1 channel and 2
    classes, 2,339,219 + 79,104 for 3 and 3.

    Deviations from the authors' program: the selection is part of the module (there it lies in a plain list and is
    never trained, saved or sent), site 0 is a site (there index 0 means "no index"), one encoder pass instead of S
    forwards (there each draws new dropout and moves the batch statistics), and upsampling to the size of the skip
    connection, so that any size from 16 pixels works (the same for multiples of 16). ``train_selection``,
    ``zero_is_own`` and ``contrast_passes`` undo the first three, one by one.

    >>> network = ChannelSelectionUNet(num_sites=3, site=1, channels=(4, 4, 8, 8, 16), head_channels=4).eval()
    >>> image = torch.zeros(2, 1, 16, 16)
    >>> network(image).shape, network.training_forward(image).gates.shape
    (torch.Size([2, 2, 16, 16]), torch.Size([3, 2, 16]))

    Args:
        in_channels: channels of the image.
        num_classes: classes K; the label of unlabeled pixels is not one of them.
        num_sites: sites S of the federation.
        site: index of the network's site, 0 .. S - 1.
        channels: widths from full resolution to the bottleneck, five of them.
        dropout: rate per encoder level.
        head_channels: width of the auxiliary heads; 512 at full resolution is most of the memory of a training step.
        training_outputs: whether a call in training mode gives a :class:`ChannelSelectionOutput`.
        train_selection: False freezes the selection at its start, as in the release.
        zero_is_own: True puts the gates of ``site`` in the place of those of site 0, as in the release.
        contrast_passes: ``one`` or, as in the release, ``per_site``: a full forward for every other site.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        num_sites: int = 5,
        site: int = 0,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        dropout: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5),
        head_channels: int = 512,
        training_outputs: bool = False,
        train_selection: bool = True,
        zero_is_own: bool = False,
        contrast_passes: str = "one",
    ) -> None:
        super().__init__()
        if len(channels) != 5 or len(dropout) != 5:
            raise ConfigError(f"ChannelSelectionUNet: channels {channels} and dropout {dropout} need five values each")
        if not 0 <= site < num_sites:
            raise ConfigError(f"ChannelSelectionUNet: site {site} is not one of the {num_sites} sites (from 0)")
        if contrast_passes not in ("one", "per_site"):
            raise ConfigError(f"ChannelSelectionUNet: contrast_passes {contrast_passes!r}; use 'one' or 'per_site'")
        self.num_sites = num_sites
        self.site = site
        self.training_outputs = training_outputs
        self.zero_is_own = zero_is_own
        self.contrast_passes = contrast_passes
        self.encoder = Encoder(in_channels, channels, dropout)
        self.channel_selection = ChannelSelection(num_sites, channels[4]).requires_grad_(train_selection)
        self.decoder = Decoder(channels, num_classes)
        self.auxiliary_heads = nn.ModuleList(
            [auxiliary_head(width, head_channels, num_classes) for width in (channels[2], channels[1], channels[0])]
        )

    def forward(self, image: Tensor, site: int | None = None) -> Tensor:
        """Logits ``(B, K, H, W)`` of images ``(B, in_channels, H, W)`` as seen by ``site`` (None: the network's)."""
        if not torch.jit.is_scripting():
            self._check_site(site)
            if self.training and self.training_outputs:
                return self.training_forward(image, site)  # type: ignore[return-value]
        features = self.encoder(image)
        gates = self.channel_selection(features[4])
        return self.decoder(features, gates[self.site if site is None else site])[4]

    def training_forward(self, image: Tensor, site: int | None = None) -> ChannelSelectionOutput:
        """Return everything that the losses of FedICRA need, in any mode of the network. Not scriptable."""
        self._check_site(site)
        own = self.site if site is None else site
        features = self.encoder(image)
        gates = self.channel_selection(features[4])
        decoded = self.decoder(features, gates[own])
        auxiliary = [head(level) for head, level in zip(self.auxiliary_heads, decoded[1:4], strict=True)]
        if self.contrast_passes == "per_site":
            gates = self._gates_by_forwards(image, gates[own], own)
        if self.zero_is_own and own != 0:
            gates = torch.cat([gates[own : own + 1], gates[1:]])
        return ChannelSelectionOutput(decoded[4], auxiliary, gates, image)

    @torch.no_grad()
    def _passing_gates(self, image: Tensor, site: int) -> Tensor:
        """Gates of another site from a full forward, as in the release: it draws dropout and moves statistics."""
        features = self.encoder(image)
        gates = self.channel_selection(features[4])[site]
        for head, level in zip(self.auxiliary_heads, self.decoder(features, gates)[1:4], strict=True):
            head(level)
        return gates

    def _gates_by_forwards(self, image: Tensor, own_gates: Tensor, own: int) -> Tensor:
        sites = range(self.num_sites)
        return torch.stack([own_gates if site == own else self._passing_gates(image, site) for site in sites])

    def _check_site(self, site: int | None) -> None:
        if site is not None and not 0 <= site < self.num_sites:
            raise ConfigError(f"ChannelSelectionUNet: site {site} is not one of the {self.num_sites} sites (from 0)")


class Encoder(nn.Module):
    """Five levels of two convolutions, halved in between: features at strides 1, 2, 4, 8, 16."""

    def __init__(self, in_channels: int, channels: Sequence[int], dropout: Sequence[float]) -> None:
        super().__init__()
        inputs = [in_channels, *channels[:-1]]
        blocks = [conv_block(*sizes) for sizes in zip(inputs, channels, dropout, strict=True)]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for level, block in enumerate(self.blocks):
            x = block(x if level == 0 else functional.max_pool2d(x, 2))
            features.append(x)
        return features


class Decoder(nn.Module):
    """Four upsampling stages and the last convolution; gives the four stages and the logits."""

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.up1 = UpStage(channels[4], channels[3])
        self.up2 = UpStage(channels[3], channels[2])
        self.up3 = UpStage(channels[2], channels[1])
        self.up4 = UpStage(channels[1], channels[0])
        self.out_conv = nn.Conv2d(channels[0], num_classes, 3, padding=1)

    def forward(self, features: list[Tensor], gates: Tensor) -> list[Tensor]:
        """Features of the encoder and gates ``(B, C)`` of one site."""
        selected = features[4] * (1 + gates.unsqueeze(2).unsqueeze(3))
        first = self.up1(selected, features[3])
        second = self.up2(first, features[2])
        third = self.up3(second, features[1])
        fourth = self.up4(third, features[0])
        return [first, second, third, fourth, self.out_conv(fourth)]


class UpStage(nn.Module):
    """Halve the channels, upsample to the size of the skip connection, join, convolve."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, out_channels, 1)
        self.block = conv_block(2 * out_channels, out_channels, 0.0)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = functional.interpolate(self.reduce(x), size=skip.shape[2:], mode="bilinear", align_corners=True)
        return self.block(torch.cat([skip, x], 1))


def conv_block(in_channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    """Two 3x3 convolutions with batch normalization and leaky ReLU, element-wise dropout between them."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(0.01),
        nn.Dropout(dropout),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(0.01),
    )


def auxiliary_head(in_channels: int, width: int, num_classes: int) -> nn.Sequential:
    """Embedding for the trees of one scale; it is trained through the tree energy only."""
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout2d(0.1),
        nn.Conv2d(width, num_classes, 1, bias=False),
    )
