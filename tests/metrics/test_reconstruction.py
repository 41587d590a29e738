# SPDX-License-Identifier: Apache-2.0
"""NMSE, PSNR and SSIM equal the published values, scikit-image and hand computation; degenerate volumes are defined."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numerics import assert_within
from skimage.metrics import structural_similarity

from fedmonai.errors import ConfigError
from fedmonai.metrics.reconstruction import PSNR_CAP, nmse, psnr, ssim

GOLDEN = Path(__file__).parents[1] / "golden" / "reconstruction_metrics.npz"


def volumes(shape: tuple[int, ...] = (3, 20, 24)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(*shape, generator=generator) ** 3 * 40
    return target + torch.randn(*shape, generator=generator), target


@pytest.mark.parametrize("case", [0, 1, 2])
def test_golden(case):
    with np.load(GOLDEN) as golden:
        pred, target = (torch.from_numpy(golden[f"{name}{case}"]).double() for name in ("pred", "target"))
        rounded = sum(pred.shape)  # of the reference, which adds up float32
        assert_within(nmse(pred, target), golden[f"nmse{case}"].astype(np.float32), rounded)
        assert_within(psnr(pred, target), golden[f"psnr{case}"].astype(np.float32), rounded)
        assert_within(ssim(pred, target), golden[f"ssim_volume_mean_of_slices{case}"].astype(np.float32), rounded)


@pytest.mark.parametrize(("offset", "tolerance"), [(0.0, 1e-6), (1000.0, 1e-2)])
def test_ssim_equals_scikit_image(offset, tolerance):
    # with a large offset the variances cancel in float32; in float64 nothing is lost
    pred, target = (volume + offset for volume in volumes((4, 31, 26)))
    slices = [
        structural_similarity(y.numpy(), x.numpy(), data_range=target.max().item())
        for x, y in zip(pred.double(), target.double(), strict=True)
    ]
    assert ssim(pred, target).item() == pytest.approx(np.mean(slices), abs=tolerance)
    assert ssim(pred.double(), target.double()).item() == pytest.approx(np.mean(slices), abs=1e-9)


def test_by_hand():
    target = torch.zeros(2, 7, 7)
    target[0, 0, 0], target[1, 0, 0] = 3.0, 4.0
    pred = target.clone()
    pred[1, 6, 6] = 1.0
    assert nmse(pred, target).item() == pytest.approx(1 / 25)
    # one of 98 pixels is wrong by 1; the range is the maximum of the volume
    assert psnr(pred, target).item() == pytest.approx(10 * math.log10(16 * 98))
    # slice 0 is equal; slice 1 has one 7x7 window: means 5/49 and 4/49, variances 49/48 (17/49 - 25/49^2) and
    # 49/48 (16/49 - 16/49^2), covariance 49/48 (16/49 - 20/49^2)
    c1, c2, n = (0.01 * 4) ** 2, (0.03 * 4) ** 2, 49
    variances = n / (n - 1) * (33 / n - (25 + 16) / n**2)
    covariance = n / (n - 1) * (16 / n - 20 / n**2)
    value = (2 * 20 / n**2 + c1) * (2 * covariance + c2) / ((41 / n**2 + c1) * (variances + c2))
    assert ssim(pred, target).item() == pytest.approx((1 + value) / 2, rel=1e-5)


def test_equal_volumes():
    _, target = volumes()
    assert nmse(target, target) == 0
    assert psnr(target, target) == PSNR_CAP
    assert_within(ssim(target, target), 1.0, sum(target.shape))


def test_scores_do_not_depend_on_the_unit():
    pred, target = volumes()
    for function in (nmse, psnr, ssim):
        assert_within(function(pred * 1e-6, target * 1e-6), function(pred, target), 2 * sum(pred.shape))


@pytest.mark.parametrize(("function", "right", "wrong"), [(nmse, 0, 1), (psnr, PSNR_CAP, 0), (ssim, 1, 0)])
def test_an_all_zero_target_has_a_defined_score(function, right, wrong):
    zero = torch.zeros(2, 8, 8)
    assert function(zero, zero) == right
    assert function(zero + 0.5, zero) == wrong


def test_reduced_precision_is_scored_in_float32():
    pred, target = volumes()
    for function in (nmse, psnr, ssim):
        assert function(pred.bfloat16(), target).dtype == torch.float32
        assert function(pred.bfloat16(), target.bfloat16()).dtype == torch.float32


def test_wrong_shapes_are_refused():
    pred, target = volumes()
    with pytest.raises(ConfigError, match=r"\(3, 20, 24\) and target \(2, 20, 24\)"):
        nmse(pred, target[:2])
    with pytest.raises(ConfigError, match="7 x 7"):
        ssim(pred[:, :6], target[:, :6])
