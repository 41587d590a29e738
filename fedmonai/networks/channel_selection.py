# SPDX-License-Identifier: Apache-2.0
"""Personalized channel selection: every site weighs the channels of the same features in its own way."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedmonai.errors import ConfigError

__all__ = ["ChannelSelection"]


class ChannelSelection(nn.Module):
    """Channel gates of all sites for one set of features (FedICRA, arXiv 2304.05635; gates as in CBAM).

    With e_j the embedding of site j, ``avg`` and ``max`` over the pixels of the features,

        h_j = sigmoid( M(avg || W2 relu(e_j)) + M(max || W2 relu(e_j)) ),    M = linear, relu, linear, without bias.

    In the authors' program the embeddings are the columns of one weight that every site uploads. Here each site's row
    is a parameter of its own, ``site_embeddings.<index>``: a site that sends only its own row (beside the rest of the
    module) has it averaged with nobody's untrained copy.

    Args:
        num_sites: number of sites S, >= 1.
        channels: channels C of the features, and length of the embeddings.
        reduction: width of the hidden layer of M is ``channels / reduction``.
    """

    def __init__(self, num_sites: int, channels: int = 256, reduction: int = 16) -> None:
        super().__init__()
        if num_sites < 1:
            raise ConfigError(f"ChannelSelection: num_sites is {num_sites}; there must be at least one site")
        # The spread of the first layer of a network with one input per site.
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
