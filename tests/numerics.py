# SPDX-License-Identifier: Apache-2.0
"""How far two computations of one value may lie apart on any processor, with any number of threads."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn


def assert_within(
    actual: Tensor | np.ndarray | float, expected: Tensor | np.ndarray | float, roundings: int, scale: float = 0.0
) -> None:
    """Assert that two results of at most ``roundings`` roundings one after the other differ by no more than these.

    An operation rounds its result by up to eps / 2 of it; another instruction set or number of threads adds the same
    terms in another order, or fuses two operations, but rounds no more often. Two results are hence at most
    ``roundings * eps`` of the largest value on the way apart (in practice about the square root of that many eps,
    because roundings differ in sign: what is left covers layers that amplify what comes in). The largest value on the
    way is that of ``expected``, or ``scale`` where values cancel and the result is smaller than its terms. eps is that
    of the less precise of the two tensors or arrays; a plain number counts as exact.

    What a fault would make (a wrong layer, weight, axis or coefficient) is percents of the scale. A bound may therefore
    never exceed one part in a thousand; a chain too long for that in float32 is to be computed in float64.
    """
    values = [value.detach().cpu().numpy() if isinstance(value, Tensor) else value for value in (actual, expected)]
    kinds = [value.dtype for value in values if isinstance(value, np.ndarray | np.generic)]
    eps = max((float(np.finfo(kind).eps) for kind in kinds if kind.kind in "fc"), default=float(np.finfo(float).eps))
    a, b = (np.asarray(value).astype(np.complex128) for value in values)
    assert a.shape == b.shape, f"shapes {a.shape} and {b.shape}"
    assert roundings * eps <= 1e-3, f"{roundings} roundings of {eps:.1e} would hide a fault; use float64"
    assert np.isfinite(a).all() and np.isfinite(b).all()
    size = max(scale, float(np.abs(b).max(initial=0.0)))
    error = float(np.abs(a - b).max(initial=0.0))
    assert error <= roundings * eps * size, (
        f"{error:.3e} apart; {roundings} roundings of values up to {size:.3e} allow {roundings * eps * size:.3e}"
    )


def roundings_of(network: nn.Module) -> int:
    """The longest chain of roundings of a forward pass: every term of every dot product, and ten for each other layer.

    A normalization or an activation has few operations one after the other; its sums are added up in blocks.
    """
    layers = [module for module in network.modules() if not list(module.children())]
    return sum(p[0].numel() for p in network.parameters() if p.ndim > 1) + 10 * len(layers)
