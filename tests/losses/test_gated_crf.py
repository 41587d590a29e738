# SPDX-License-Identifier: Apache-2.0
"""The gated CRF loss against the reference vectors and against a direct sum over all pairs of pixels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numerics import assert_within
from torch import Tensor
from torch.nn import functional

from fedmonai.errors import ConfigError
from fedmonai.losses.gated_crf import GatedCRFLoss

GOLDEN = Path(__file__).parents[1] / "golden"


def unfold_form(
    logits: Tensor, image: Tensor, radius: int = 5, sigma_xy: float = 6.0, sigma_rgb: float = 0.1
) -> Tensor:
    """The authors' way: all neighbors of all pixels in one tensor, black and classless outside of the image."""
    p = logits.softmax(1)
    b, _, h, w = p.shape
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    position = torch.stack([rows, columns]).to(p.dtype).expand(b, -1, -1, -1) / sigma_xy
    features = torch.cat([position, image / sigma_rgb], 1)
    size = 2 * radius + 1

    def neighbors(x: Tensor) -> Tensor:
        return functional.unfold(x, size, padding=radius).reshape(b, -1, size * size, h, w)

    kernel = torch.exp(-0.5 * (neighbors(features) - features[:, :, None]).square().sum(1))
    kernel[:, size * size // 2] = 0
    agreement = (neighbors(p) * p[:, :, None]).sum(1)
    return (kernel * (1 - agreement)).sum() / (b * h * w)


def pair_form(logits: Tensor, image: Tensor, radius: int, sigma_xy: float, sigma_rgb: float) -> Tensor:
    """The definition, one pair of pixels after the other."""
    p = logits.softmax(1)
    b, _, h, w = p.shape
    total = torch.zeros((), dtype=p.dtype)
    for n in range(b):
        for y1, x1, y2, x2 in np.ndindex(h, w, h, w):
            dy, dx = y1 - y2, x1 - x2
            if (dy, dx) == (0, 0) or max(abs(dy), abs(dx)) > radius:
                continue
            color = float((image[n, :, y1, x1] - image[n, :, y2, x2]).square().sum())
            k = math.exp(-(dy * dy + dx * dx) / (2 * sigma_xy**2) - color / (2 * sigma_rgb**2))
            total = total + k * (1 - (p[n, :, y1, x1] * p[n, :, y2, x2]).sum())
    return total / (b * h * w)


@pytest.mark.parametrize("name", ["gated_crf", "gated_crf_rgb"])
def test_reference_vector_gradient(name: str) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    logits, image = (torch.from_numpy(golden[name]).double() for name in ("logits", "image"))
    logits.requires_grad_()
    settings = (int(golden["radius"]), float(golden["sigma_xy"]), float(golden["sigma_rgb"]))
    loss = GatedCRFLoss(*settings)(logits, image)
    loss.backward()
    expected = golden["logit_grad"]
    assert logits.grad is not None
    assert_within(logits.grad, expected, expected.shape[1] * 11**2)  # the reference's sums over the neighbors, float32
    with_border = float(golden["loss_unfold_with_zero_padding"])
    assert abs(float(unfold_form(logits.detach(), image, *settings)) - with_border) < 1e-4 * with_border
    assert loss.item() < with_border  # by the constant of the border


@pytest.mark.parametrize("channels", [1, 3])
def test_value_and_gradient_in_double_precision(channels: int) -> None:
    generator = torch.Generator().manual_seed(channels)
    logits = torch.randn(2, 3, 7, 6, dtype=torch.float64, generator=generator)
    image = torch.rand(2, channels, 7, 6, dtype=torch.float64, generator=generator)
    gradients = []
    values = []
    for form in (
        lambda x: GatedCRFLoss(2, 3.0, 0.2)(x, image),
        lambda x: pair_form(x, image, 2, 3.0, 0.2),
        lambda x: unfold_form(x, image, 2, 3.0, 0.2),
    ):
        x = logits.clone().requires_grad_()
        value = form(x)
        gradients.append(torch.autograd.grad(value, x)[0])
        values.append(value.item())
    assert abs(values[0] - values[1]) < 1e-12
    assert (gradients[0] - gradients[1]).abs().max() < 1e-12
    assert (gradients[0] - gradients[2]).abs().max() < 1e-12
    assert torch.autograd.gradcheck(lambda x: GatedCRFLoss(2, 3.0, 0.2)(x, image), logits.clone().requires_grad_())


def test_flat_image_and_uniform_prediction_give_46_inside() -> None:
    offsets = [(y, x) for y in range(-5, 6) for x in range(-5, 6) if (y, x) != (0, 0)]
    kernels = sum(math.exp(-(y * y + x * x) / 72) for y, x in offsets)
    assert round(kernels, 1) == 92.0

    def total(size: int) -> float:
        flat = torch.full((1, 1, size, size), 0.7, dtype=torch.float64)
        uniform = torch.zeros(1, 2, size, size, dtype=torch.float64)
        return float(GatedCRFLoss()(uniform, flat)) * size**2

    # The sum over an N x N image is 1/2 sum_d k_d (N - |dy|)(N - |dx|): its second difference is twice a pixel's share
    # away from the border.
    interior = (total(31) - 2 * total(30) + total(29)) / 2
    assert abs(interior - 0.5 * kernels) < 1e-9
    assert round(interior, 1) == 46.0


def test_constant_one_hot_prediction_gives_exactly_zero() -> None:
    logits = torch.tensor([200.0, -200.0]).reshape(1, 2, 1, 1).expand(2, -1, 12, 10)
    image = torch.rand(2, 1, 12, 10, generator=torch.Generator().manual_seed(0))
    assert float(GatedCRFLoss()(logits, image)) == 0.0
    assert float(unfold_form(logits, image)) > 0.0


def test_brightness_offset_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(1, 2, 12, 10, dtype=torch.float64, generator=generator)
    image = torch.rand(1, 1, 12, 10, dtype=torch.float64, generator=generator)
    loss = GatedCRFLoss()
    assert abs(float(loss(logits, image)) - float(loss(logits, image + 0.25))) < 1e-12
    assert abs(float(unfold_form(logits, image)) - float(unfold_form(logits, image + 0.25))) > 1e-3


def test_image_smaller_than_the_radius_and_autocast() -> None:
    generator = torch.Generator().manual_seed(4)
    logits, image = torch.randn(1, 2, 3, 2, generator=generator), torch.rand(1, 1, 3, 2, generator=generator)
    plain = GatedCRFLoss()(logits, image)
    assert_within(plain, pair_form(logits, image, 5, 6.0, 0.1), 2 * 6**2)  # all pairs of six pixels, two classes
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(GatedCRFLoss()(logits, image), plain)


def test_inputs_are_left_as_they_are() -> None:
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    before = image.detach().clone()
    logits = torch.zeros(1, 2, 8, 8, requires_grad=True)
    GatedCRFLoss()(logits, image).backward()
    assert torch.equal(image, before)
    assert image.grad is None


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="radius 0"):
        GatedCRFLoss(radius=0)
    with pytest.raises(ConfigError, match="differ in batch or size"):
        GatedCRFLoss()(torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, 16, 16))
