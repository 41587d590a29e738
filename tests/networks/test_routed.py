# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numerics import assert_within, roundings_of
from torch.nn import functional as F

from fedmonai.errors import ConfigError
from fedmonai.networks.routed import RoutedConv2d, RoutedConvTranspose2d

GOLDEN = Path(__file__).parents[1] / "golden" / "iop_fl_routing.npz"


def golden_layer(kind: str, form: str) -> tuple[torch.nn.Module, torch.Tensor, np.ndarray]:
    golden = np.load(GOLDEN)
    layer: torch.nn.Module
    if kind == "conv":
        layer = RoutedConv2d(6, 5, 3, num_experts=5, padding=1, form=form)
    else:
        layer = RoutedConvTranspose2d(6, 5, 2, num_experts=5, stride=2, form=form)
    names = {"expert_weights": "expert_weights", "expert_biases": "expert_biases"}
    names |= {f"router.{key}": f"router_{key}" for key in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")}
    layer.load_state_dict({key: torch.from_numpy(golden[f"{kind}_{name}"]) for key, name in names.items()})
    return layer.eval(), torch.from_numpy(golden[f"{kind}_input"]), golden[f"{kind}_output"]


def terms(layer: torch.nn.Module) -> int:
    """The longest chain of roundings: the router's, and the dot product over channels, window and experts."""
    return roundings_of(layer) + layer.expert_weights[:, 0].numel()


@pytest.mark.parametrize("form", ["grouped", "sum"])
@pytest.mark.parametrize("kind", ["conv", "transposed"])
def test_equals_the_published_layer(kind, form):
    layer, image, expected = golden_layer(kind, form)
    assert_within(layer(image), expected, terms(layer))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_both_forms_equal_a_loop_over_examples_with_gradients(transposed, groups):
    torch.manual_seed(0)
    if transposed:
        layer = RoutedConvTranspose2d(
            4, 6, (3, 2), 3, stride=2, padding=1, output_padding=1, groups=groups, dropout=0.0
        ).double()
        options = {"stride": 2, "padding": 1, "output_padding": 1, "groups": groups}
        convolve = F.conv_transpose2d
    else:
        layer = RoutedConv2d(4, 6, (3, 1), 3, stride=2, padding=(1, 0), dilation=2, groups=groups, dropout=0.0).double()
        options = {"stride": 2, "padding": (1, 0), "dilation": 2, "groups": groups}
        convolve = F.conv2d
    layer.expert_weights.normal_()
    layer.expert_biases.normal_()
    image = torch.randn(3, 4, 7, 9, dtype=torch.float64)
    shares = layer.router(image)
    assert shares.shape == (3, 3) and bool(((shares > 0) & (shares < 1)).all())
    outputs = []
    for example, share in zip(image, shares, strict=True):
        weight = sum(share[e] * layer.expert_weights[e] for e in range(3))
        bias = sum(share[e] * layer.expert_biases[e] for e in range(3))
        outputs.append(convolve(example[None], weight, bias, **options))
    expected = torch.cat(outputs)
    parameters = list(layer.router.parameters())
    gradients = torch.autograd.grad(expected.square().mean(), parameters)
    for form in ("grouped", "sum"):
        layer.form = form
        output = layer(image)
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(torch.autograd.grad(output.square().mean(), parameters), gradients)


@pytest.mark.parametrize("bias", [True, False])
def test_small_maps_are_one_batched_product_with_the_same_result(bias, monkeypatch):
    torch.manual_seed(0)
    layer = RoutedConv2d(4, 20, (3, 1), 3, stride=(1, 2), padding=1, dilation=(2, 1), bias=bias, dropout=0.0).double()
    layer.expert_weights.normal_()
    image = torch.randn(3, 4, 5, 3, dtype=torch.float64)
    expected = layer.forward_sum(image, layer.router(image))
    assert expected.shape == (3, 20, 3, 3)  # 9 pixels, 20 channels
    gradients = torch.autograd.grad(expected.square().mean(), list(layer.router.parameters()))
    monkeypatch.setattr(layer, "convolve_grouped", None)  # must not be used
    output = layer(image)
    torch.testing.assert_close(output, expected)
    result = torch.autograd.grad(output.square().mean(), list(layer.router.parameters()))
    torch.testing.assert_close(result, gradients)


def test_examples_of_a_batch_do_not_mix():
    layer, image, _ = golden_layer("conv", "grouped")
    assert_within(layer(image)[1:2], layer(image[1:2]), terms(layer))


def test_experts_are_saved_but_never_trained():
    layer = RoutedConv2d(2, 3, 3, num_experts=4, bias=False)
    assert set(dict(layer.named_parameters())) == {
        f"router.{fc}.{leaf}" for fc in ("fc1", "fc2") for leaf in ("weight", "bias")
    }
    assert "expert_weights" in layer.state_dict() and "expert_biases" not in layer.state_dict()


def test_script_of_the_grouped_form_takes_any_batch():
    layer, image, _ = golden_layer("transposed", "grouped")
    script = torch.jit.script(layer)
    for batch in (image, image[:1]):
        assert_within(script(batch), layer(batch), terms(layer))


def test_refuses_an_unknown_form_and_no_experts():
    with pytest.raises(ConfigError, match="'loop' is not known: use one of grouped, sum"):
        RoutedConv2d(1, 1, 3, num_experts=2, form="loop")
    with pytest.raises(ConfigError, match="num_experts=0"):
        RoutedConv2d(1, 1, 3, num_experts=0)
