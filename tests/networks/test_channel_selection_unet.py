# SPDX-License-Identifier: Apache-2.0
"""Sizes, site indices, outputs and the switches of the network of FedICRA."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from numerics import assert_within, roundings_of
from torch import Tensor, nn

from fedmonai.errors import ConfigError
from fedmonai.losses.site_contrast import SiteContrastLoss
from fedmonai.networks.channel_selection_unet import ChannelSelectionOutput, ChannelSelectionUNet

SMALL = {"channels": (2, 4, 4, 8, 16), "head_channels": 4}


def small(**settings: object) -> ChannelSelectionUNet:
    torch.manual_seed(0)
    return ChannelSelectionUNet(**{**SMALL, **settings})  # type: ignore[arg-type]


@pytest.fixture
def image() -> Tensor:
    return torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("in_channels", "num_classes", "expected"), [(1, 2, 2_337_250), (3, 3, 2_339_219)])
def test_parameter_counts(in_channels: int, num_classes: int, expected: int) -> None:
    network = ChannelSelectionUNet(in_channels, num_classes)
    counts = {name: sum(p.numel() for p in child.parameters()) for name, child in network.named_children()}
    assert counts["channel_selection"] == 79_104
    assert sum(counts.values()) == expected + 79_104
    assert counts["auxiliary_heads"] == 523_776 + 512 * 3 * (num_classes - 2)
    assert counts["encoder"] == 1_180_464 + 16 * 9 * (in_channels - 1)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 21
    assert sum(2 * norm.num_features for norm in norms) == 6_016
    mixed = [p for name, p in network.named_parameters() if any(f"up{k}." in name for k in range(1, 5))]
    mixed += list(network.decoder.out_conv.parameters())
    assert sum(p.numel() for p in mixed) == 633_010 + (num_classes - 2) * 145


def test_selection_is_registered_and_learns(image: Tensor) -> None:
    network = small()
    selection = {name for name in network.state_dict() if name.startswith("channel_selection.")}
    expected = {f"channel_selection.site_embeddings.{site}" for site in range(5)}
    expected |= {f"channel_selection.{part}.weight" for part in ("project", "squeeze", "excite")}
    assert selection == expected <= set(dict(network.named_parameters()))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network.train()
    network(image).square().sum().backward()
    optimizer.step()
    changed = {name for name in selection if not torch.equal(before[name], network.state_dict()[name])}
    others = {f"channel_selection.site_embeddings.{site}" for site in range(1, 5)}
    assert changed == selection - others  # a forward touches the own row only


def test_every_site_has_its_own_gates_site_zero_included(image: Tensor) -> None:
    network = small().eval()
    gates = network.training_forward(image).gates
    assert gates.shape == (5, 2, 16)
    assert bool(((gates > 0) & (gates < 1)).all())
    for one in range(5):
        for other in range(one):
            assert not torch.equal(gates[one], gates[other])
    for own in range(5):
        network.site = own
        assert torch.equal(network(image), network(image, own))
        assert not torch.equal(network(image, 0), network(image, 3))


def test_gates_of_one_pass_equal_those_of_a_forward_per_site(image: Tensor) -> None:
    contrast = SiteContrastLoss("released")
    one, per_site = small(site=2).eval(), small(site=2, contrast_passes="per_site").eval()
    with torch.no_grad():
        a, b = one.training_forward(image).gates, per_site.training_forward(image).gates
        assert_within(a, b, roundings_of(one))
        assert_within(contrast(a, 2), contrast(b, 2), roundings_of(one), scale=1.0)  # of squares of gates below 1
        assert torch.equal(one.training_forward(image).logits, one(image))


@pytest.mark.parametrize(("passes", "updates"), [("one", 1), ("per_site", 5)])
def test_statistics_move_once_per_pass(image: Tensor, passes: str, updates: int) -> None:
    network = small(contrast_passes=passes).train()
    network.training_forward(image)
    counters = [int(value) for name, value in network.named_buffers() if name.endswith("num_batches_tracked")]
    assert counters == [updates] * 21


def test_training_call_gives_everything_only_when_asked(image: Tensor) -> None:
    network = small(training_outputs=True)
    output = network.train()(image)
    assert isinstance(output, ChannelSelectionOutput)
    assert output.logits.shape == (2, 2, 32, 32)
    assert [tuple(a.shape) for a in output.auxiliary] == [(2, 2, 8, 8), (2, 2, 16, 16), (2, 2, 32, 32)]
    assert output.image is image
    assert isinstance(network.eval()(image), Tensor)
    assert isinstance(small().train()(image), Tensor)


def test_heads_run_in_training_forwards_only(image: Tensor) -> None:
    network = small().eval()
    calls: list[int] = []
    for head in network.auxiliary_heads:
        head.register_forward_hook(lambda *_: calls.append(1))
    network(image)
    assert not calls
    network.training_forward(image)
    assert len(calls) == 3


def test_scripted_forward_is_one_tensor_and_equal(image: Tensor, tmp_path: Path) -> None:
    network = small(site=1, training_outputs=True).eval()
    torch.jit.script(network).save(str(tmp_path / "network.ts"))
    scripted = torch.jit.load(str(tmp_path / "network.ts"))
    assert_within(scripted(image), network(image), roundings_of(network))
    assert_within(scripted(image, 4), network(image, 4), roundings_of(network))
    scripted.train()
    assert isinstance(scripted(image), Tensor)


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs the extra 'onnx'")
def test_exported_forward_is_one_tensor(image: Tensor) -> None:
    program = torch.onnx.export(small().eval(), (image,), dynamo=True, verbose=False)
    assert program is not None
    (output,) = program.model.graph.outputs
    assert output.shape is not None
    assert tuple(output.shape) == (2, 2, 32, 32)


@pytest.mark.parametrize("size", [(37, 53), (216, 256), (16, 16)])
def test_any_size_from_sixteen_pixels(size: tuple[int, int]) -> None:
    assert small().eval()(torch.zeros(1, 1, *size)).shape == (1, 2, *size)


def test_switches_of_the_release(image: Tensor) -> None:
    frozen = small(train_selection=False)
    assert not any(p.requires_grad for p in frozen.channel_selection.parameters())
    assert all(p.requires_grad for name, p in frozen.named_parameters() if not name.startswith("channel_selection."))
    confused = small(site=3, zero_is_own=True).eval().training_forward(image).gates
    intended = small(site=3).eval().training_forward(image).gates
    assert torch.equal(confused[0], intended[3])
    assert torch.equal(confused[1:], intended[1:])
    at_zero = small(site=0, zero_is_own=True).eval().training_forward(image).gates
    assert torch.equal(at_zero, intended)
    released = small(site=1, contrast_passes="per_site").train()
    released.training_forward(image).gates[[0, 2, 3, 4]].sum().backward()  # the other sites' forwards have no gradient
    assert all(p.grad is None or not p.grad.any() for p in released.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"site": 5}, "site 5 is not one of the 5 sites"),
        ({"num_sites": 0}, "site 0 is not one of the 0 sites"),
        ({"channels": (2, 4)}, "need five values"),
        ({"contrast_passes": "two"}, "'two'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**settings)
    with pytest.raises(ConfigError, match="site 7 is not one of the 5"):
        small()(torch.zeros(1, 1, 16, 16), 7)
