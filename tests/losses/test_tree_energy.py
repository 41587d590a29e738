# SPDX-License-Identifier: Apache-2.0
"""The tree energy loss against its formula, and what its gradient reaches."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fedmonai.errors import ConfigError
from fedmonai.losses.gated_crf import GatedCRFLoss
from fedmonai.losses.partial_cross_entropy import PartialCrossEntropyLoss
from fedmonai.losses.site_contrast import SiteContrastLoss
from fedmonai.losses.spanning_tree import edge_costs, minimum_spanning_trees, root_forest
from fedmonai.losses.tree_energy import TreeEnergyLoss, tree_affinities, tree_filter


def filtered(values: Tensor, features: Tensor, sigma: float) -> Tensor:
    height, width = features.shape[-2:]
    forest = root_forest(minimum_spanning_trees(edge_costs(features), height, width), height, width)
    return tree_filter(values, tree_affinities(features, forest, sigma), forest)


@pytest.fixture
def case() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    label = torch.full((2, 1, 16, 12), 2)
    label[:, :, :3, :4] = 0
    label[0, :, 8:, 8:] = 1
    return {
        "logits": torch.randn(2, 2, 16, 12, dtype=torch.float64, generator=generator),
        "label": label,
        "image": torch.rand(2, 1, 16, 12, dtype=torch.float64, generator=generator),
        "coarse": torch.randn(2, 2, 8, 6, dtype=torch.float64, generator=generator),
        "fine": torch.randn(2, 3, 16, 12, dtype=torch.float64, generator=generator),
    }


def test_modes_follow_their_formulas(case: dict[str, Tensor]) -> None:
    p = case["logits"].softmax(1)
    unlabeled = case["label"] == 2
    image = case["image"].expand(-1, 3, -1, -1)
    coarse = interpolate(case["coarse"], size=(16, 12), mode="bilinear", align_corners=False)
    y0 = filtered(p, image, 0.02)
    y1 = filtered(y0, coarse, 1.0)
    expected = {
        "recursive": (p - filtered(y1, case["fine"], 1.0)).abs(),
        "add": (p - y1).abs() + (p - filtered(y0, case["fine"], 1.0)).abs(),
        "single": (p - filtered(y0, case["fine"], 1.0)).abs(),
    }
    for mode, distance in expected.items():
        value = TreeEnergyLoss(2, mode=mode)(
            case["logits"], case["label"], case["image"], [case["coarse"], case["fine"]]
        )
        assert abs(float(value) - float((distance * unlabeled).sum() / unlabeled.sum())) < 1e-12
    alone = TreeEnergyLoss(2, mode="add")(case["logits"], case["label"], case["image"])
    assert abs(float(alone) - float(((p - y0).abs() * unlabeled).sum() / unlabeled.sum())) < 1e-12


def test_gray_images_count_three_times_unless_switched_off(case: dict[str, Tensor]) -> None:
    arguments = (case["logits"], case["label"])
    tripled = TreeEnergyLoss(2, sigma_low=0.03)(*arguments, case["image"])
    plain = TreeEnergyLoss(2, sigma_low=0.01, replicate_gray=False)(*arguments, case["image"])
    assert abs(float(tripled) - float(plain)) < 1e-12


def test_gradient_reaches_logits_and_embeddings_but_not_the_image(case: dict[str, Tensor]) -> None:
    for name in ("logits", "image", "coarse", "fine"):
        case[name].requires_grad_()
    loss = TreeEnergyLoss(2)(case["logits"], case["label"], case["image"], [case["coarse"], case["fine"]])
    loss.backward()
    assert case["image"].grad is None
    for name in ("logits", "coarse", "fine"):
        gradient = case[name].grad
        assert gradient is not None
        assert gradient.abs().max() > 0


def test_both_backends_agree_in_value_and_gradient(case: dict[str, Tensor]) -> None:
    results = []
    for backend in ("compiled", "tensor"):
        logits = case["logits"].clone().requires_grad_()
        fine = case["fine"].clone().requires_grad_()
        loss = TreeEnergyLoss(2, backend=backend)(logits, case["label"], case["image"], [case["coarse"], fine])
        loss.backward()
        results.append((loss.detach(), logits.grad, fine.grad))
    for one, other in zip(*results, strict=True):
        assert one is not None
        assert other is not None
        assert (one - other).abs().max() < 1e-12


def test_nothing_unlabeled_and_constant_predictions_give_zero(case: dict[str, Tensor]) -> None:
    loss = TreeEnergyLoss(2)
    assert float(loss(case["logits"], torch.zeros_like(case["label"]), case["image"], [case["fine"]])) == 0.0
    constant = torch.tensor([100.0, -100.0]).reshape(1, 2, 1, 1).expand(2, -1, 16, 12)
    assert float(loss(constant, case["label"], case["image"].float(), [case["fine"].float()])) == 0.0


def test_unlabeled_pixels_are_counted_over_the_batch(case: dict[str, Tensor]) -> None:
    loss = TreeEnergyLoss(2)
    label = torch.zeros_like(case["label"])
    label[0] = 2
    alone = loss(case["logits"][:1], label[:1], case["image"][:1])
    assert abs(float(loss(case["logits"], label, case["image"])) - float(alone)) < 1e-12


def test_float32_inside_autocast(case: dict[str, Tensor]) -> None:
    logits, image, fine = case["logits"].float(), case["image"].float(), case["fine"].float()
    plain = TreeEnergyLoss(2)(logits, case["label"], image, [fine])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = TreeEnergyLoss(2)(logits, case["label"], image, [fine])
    assert inside.dtype == torch.float32
    assert torch.equal(plain, inside)


def test_tensor_backend_never_asks_the_device_for_a_value() -> None:
    """Tensors of the device "meta" have a shape but no values: reading one, as a host round trip does, is an error."""
    tensors = [torch.empty(2, channels, 16, 12, device="meta", requires_grad=True) for channels in (2, 3, 2)]
    label = torch.empty(2, 1, 16, 12, device="meta", dtype=torch.uint8)
    logits, image, embedding = tensors
    loss = TreeEnergyLoss(2)(logits, label, image, [embedding]) + GatedCRFLoss()(logits, image)
    (loss + PartialCrossEntropyLoss(2)(logits, label) + SiteContrastLoss()(embedding.flatten(2), 0)).backward()
    assert logits.grad is not None
    assert embedding.grad is not None
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(loss)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(64, 48), (256, 256)])
def test_cuda_equals_cpu_without_a_synchronization(size: tuple[int, int], cuda: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    cpu = [torch.rand(3, channels, *size, generator=generator) for channels in (2, 1, 2)]
    label = torch.randint(0, 3, (3, 1, *size), generator=generator)
    results = []
    for device in ("cpu", "cuda"):
        logits, image, embedding = (values.detach().clone().to(device).requires_grad_() for values in cpu)
        target = label.to(device)
        with cuda() if device == "cuda" else nullcontext():
            loss = TreeEnergyLoss(2)(logits, target, image, [embedding])
            loss.backward()
        results.append([torch.as_tensor(value).detach().cpu() for value in (loss, logits.grad, embedding.grad)])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "sum"}, "mode 'sum' is unknown"),
        ({"sigma_low": 0.0}, "sigma_low 0.0"),
        ({"sigma_high": -1.0}, "sigma_high -1.0"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TreeEnergyLoss(2, **settings)  # type: ignore[arg-type]
