# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io

import pytest
import torch
from numerics import assert_within, roundings_of
from torch import nn

from fedmonai.errors import ConfigError
from fedmonai.networks.routed import RoutedConv2d, RoutedConvTranspose2d
from fedmonai.networks.routing import ShareRecorder, build_routed_network, load_experts, route_network
from fedmonai.networks.segmentation_unet import SegmentationUNet


def small_network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = SegmentationUNet(base_channels=2, num_pool=2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.weight.data.uniform_(0.5, 1.5)
    return network.eval()


def image(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 12, generator=torch.Generator().manual_seed(1))


def routed_of_three(**options) -> nn.Module:
    personal = {"B": small_network(2).state_dict(), "A": small_network(1).state_dict()}
    return build_routed_network(small_network(9), personal, small_network(3).state_dict(), **options).eval()


def choose_expert(network: nn.Module, expert: int) -> None:
    """Pin every router: share 1 (sigmoid of 40) for one expert, 0 (sigmoid of -200 in float32) for the others."""
    for module in network.modules():
        if isinstance(module, RoutedConv2d | RoutedConvTranspose2d):
            module.router.fc2.weight.data.zero_()
            module.router.fc2.bias.data.fill_(-200.0)
            module.router.fc2.bias.data[expert] = 40.0


def test_every_convolution_is_replaced():
    network = routed_of_three()
    plain = [m for m in small_network(0).modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    routed = [m for m in network.modules() if isinstance(m, RoutedConv2d | RoutedConvTranspose2d)]
    assert len(plain) == len(routed) == 13  # 5 blocks of two, 2 transposed, 1 head
    assert not [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]


@pytest.mark.parametrize("form", ["grouped", "sum"])
def test_a_router_pinned_to_the_global_expert_gives_the_global_model(form):
    network = routed_of_three(batch_statistics=False, form=form)
    choose_expert(network, 2)
    assert_within(network(image()), small_network(3)(image()), 3 * roundings_of(small_network(3)))


def test_experts_follow_the_site_names_and_the_rest_is_global():
    network = routed_of_three(batch_statistics=False)
    head = network.decoder.head
    for expert, seed in enumerate((1, 2, 3)):  # A, B, global, though B was given first
        torch.testing.assert_close(head.expert_biases[expert], small_network(seed).decoder.head.bias.data)
    norm = "encoder.blocks.0.norm1.running_mean"
    torch.testing.assert_close(network.state_dict()[norm], small_network(3).state_dict()[norm])


def test_equal_models_with_shares_summing_to_one_are_that_model():
    state = small_network(4).state_dict()
    network = build_routed_network(small_network(0), {"A": state, "B": state}, state, batch_statistics=False).eval()
    for module in network.modules():
        if isinstance(module, RoutedConv2d | RoutedConvTranspose2d):
            module.router.fc2.weight.data.zero_()
            module.router.fc2.bias.data.copy_(torch.logit(torch.tensor([0.2, 0.3, 0.5])))
    assert_within(network(image()), small_network(4)(image()), 3 * roundings_of(small_network(4)))  # three experts


def test_only_routers_and_norms_train():
    network = routed_of_three()
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert len(trained) == 13 * 4 + 10 * 2
    assert all(".router." in name or ".norm" in name for name in trained)
    assert not any(buffer.requires_grad for buffer in network.buffers())


def test_batch_statistics_drop_the_running_ones():
    network = routed_of_three()
    assert not [key for key in network.state_dict() if "running" in key or "tracked" in key]
    both, alone = network(image(2)), network(image(1))
    assert (both[:1] - alone).abs().max() > 1e-3  # in eval mode, too, the batch decides


def test_the_seed_alone_decides_the_routers():
    networks = [route_network(nn.Sequential(nn.Conv2d(3, 2, 3)), 2, seed=seed) for seed in (0, 0, 1)]
    a, b, c = (network[0].router.fc1.weight for network in networks)
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_initial_share_sets_the_start():
    network = route_network(nn.Sequential(nn.Conv2d(3, 4, 1)), 5, initial_share=0.2).eval()
    network[0].router.fc2.weight.data.zero_()
    torch.testing.assert_close(network[0].router(image()), torch.full((3, 5), 0.2))
    for share, expected in ((None, 1 / 5), (0.5, 0.5)):  # ours, and the level of the authors' program
        network = route_network(nn.Sequential(nn.Conv2d(3, 4, 1)), 5, initial_share=share).eval()
        network[0].router.fc2.weight.data.zero_()
        torch.testing.assert_close(network[0].router(image()), torch.full((3, 5), expected))
    with pytest.raises(ConfigError, match="initial_share is 1"):
        route_network(nn.Sequential(nn.Conv2d(3, 4, 1)), 5, initial_share=1)


def test_with_equal_experts_the_first_network_is_near_the_model_of_all():
    """Shares near 1 / 3 sum to about 1; as released they sum to about 3 / 2, which the last convolution shows."""
    state = small_network(4).state_dict()
    expected = small_network(4)(image())
    far = []
    for share in (None, 0.5):
        options = {"batch_statistics": False, "initial_share": share}
        network = build_routed_network(small_network(0), {"A": state, "B": state}, state, **options).eval()
        far.append((network(image()) - expected).norm() / expected.norm())
    assert far[0] < 0.5 * far[1]


def test_shares_are_recorded_by_layer_and_hooks_go():
    network = routed_of_three()
    choose_expert(network, 1)
    with ShareRecorder(network) as recorder:
        network(image(2))
        network(image(1))
    shares = recorder.shares()
    assert len(shares) == 13 and not network.decoder.head.router._forward_hooks
    for share in shares.values():
        torch.testing.assert_close(share, torch.tensor([0.0, 1.0, 0.0]))
    with ShareRecorder(small_network(0)) as recorder:
        pass
    assert recorder.shares() == {}


def test_plain_weights_of_an_adaptation_take_batch_statistics():
    network = route_network(small_network(0), 0, batch_statistics=True)
    assert not [key for key in network.state_dict() if "running" in key]
    assert [key for key in route_network(small_network(0), 0, batch_statistics=False).state_dict() if "running" in key]


def test_a_saved_network_returns_from_its_state_dict():
    network = routed_of_three()
    stream = io.BytesIO()
    torch.save(network.state_dict(), stream)
    stream.seek(0)
    again = route_network(small_network(7), 3).eval()
    again.load_state_dict(torch.load(stream, weights_only=True))
    assert_within(again(image()), network(image()), 3 * roundings_of(small_network(3)))


def test_export_script_in_the_grouped_form():
    network = routed_of_three()
    assert_within(torch.jit.script(network)(image()), network(image()), 3 * roundings_of(small_network(3)))


def test_export_onnx_in_the_sum_form(tmp_path):
    onnx = pytest.importorskip("onnx", reason="the optional 'onnx' extra is not installed")
    pytest.importorskip("onnxscript", reason="the optional 'onnx' extra is not installed")
    from onnx.reference import ReferenceEvaluator

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 2, stride=2))
    network = route_network(plain, 3, form="sum").eval()
    path = tmp_path / "routed.onnx"
    batch = {0: torch.export.Dim("batch", min=1, max=16)}
    torch.onnx.export(network, (image(2),), path, dynamo=True, dynamic_shapes=(batch,), verbose=False)
    model = onnx.load(path)
    for size in (2, 3):
        output = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: image(size).numpy()})[0]
        assert_within(output, network(image(size)), 3 * roundings_of(plain) + roundings_of(network))


@pytest.mark.parametrize("layer", [nn.Conv3d(1, 1, 3), nn.Conv2d(1, 1, 3, padding_mode="reflect", padding=1)])
def test_refuses_a_layer_it_cannot_route(layer):
    with pytest.raises(ConfigError, match=r"layer 0\.1 .* cannot be routed"):
        route_network(nn.Sequential(nn.Sequential(nn.ReLU(), layer)), 2)


def test_refuses_networks_without_convolution():
    with pytest.raises(ConfigError, match="nothing to route"):
        route_network(nn.Sequential(nn.Linear(2, 2)), 2)


def test_refuses_models_that_do_not_fit():
    state = small_network(1).state_dict()
    network = route_network(small_network(0), 3)
    with pytest.raises(ConfigError, match="3 experts, but 2 models"):
        load_experts(network, {"A": state}, state)
    wrong = {**state, "decoder.head.weight": torch.zeros(2, 4, 1, 1)}
    with pytest.raises(ConfigError, match=r"model 'B': 'decoder.head.weight' has shape \(2, 4, 1, 1\)"):
        load_experts(network, {"A": state, "B": wrong}, state)
    with pytest.raises(ConfigError, match="model 'global' has no tensor"):
        load_experts(network, {"A": state, "B": state}, {})
