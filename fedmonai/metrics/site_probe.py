# SPDX-License-Identifier: Apache-2.0
"""Linear probe: how well a linear rule tells from which of two sites a latent vector comes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["linear_probe_accuracy"]


@torch.no_grad()
def linear_probe_accuracy(first: Tensor, second: Tensor, folds: int = 5, ridge: float = 0.1) -> float:
    r"""Held-out accuracy of a ridge regression that tells vectors of two sites, in [0, 1]; 0.5 is guessing.

    The probe of Alain and Bengio (Understanding intermediate layers using linear classifier probes, ICLR workshop
    2017) on the difference of two sites. With :math:`\hat X` the vectors that the rule is fitted to and
    :math:`\hat x` a further one, all standardized by the former, it is
    :math:`\hat x^T \hat X^T (\hat X \hat X^T / d + \rho I)^{-1} y`, y = 1 and -1. Both sites count with the same number
    of vectors, and every vector is classified by a rule fitted without it. Slices of one subject may lie on both sides
    of a fold: where a site has few subjects, part of the accuracy comes from recognizing them.

    Args:
        first: vectors of one site, (N, d), in random order.
        second: vectors of the other one, (M, d), likewise.
        folds: number of parts; each is classified by a rule fitted to the others.
        ridge: rho, for standardized vectors.

    Returns:
        the accuracy; NaN with fewer than two vectors of a site, which leave nothing to fit to.

    Example:
        >>> apart = torch.arange(20.0).remainder(4)[:, None]
        >>> linear_probe_accuracy(apart, apart + 10)
        1.0
    """
    count = min(len(first), len(second))
    if count < 2:
        return float("nan")
    vectors = torch.cat([first[:count], second[:count]]).double()
    sites = torch.cat([vectors.new_ones(count), -vectors.new_ones(count)])
    fold = torch.arange(count, device=vectors.device).remainder(min(folds, count)).repeat(2)
    right = 0.0
    for number in range(int(fold.max()) + 1):
        held, seen = fold == number, fold != number
        mean, spread = vectors[seen].mean(0), vectors[seen].std(0, correction=0).clamp_min(1e-12)
        known, asked = (vectors[seen] - mean) / spread, (vectors[held] - mean) / spread
        kernel = known @ known.T / known.shape[1]
        kernel.diagonal().add_(ridge)
        told = asked @ known.T @ torch.linalg.solve(kernel, sites[seen])
        right += float((told * sites[held] > 0).sum())
    return right / len(vectors)
