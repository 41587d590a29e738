# SPDX-License-Identifier: Apache-2.0
"""The MR U-Net equals the published one (outputs, latents, gradients), for odd sizes too, and can be exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numerics import assert_within, roundings_of
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.networks.reconstruction_unet import ReconstructionUNet, pooled_latent

GOLDEN = Path(__file__).parents[1] / "golden"


def small(**arguments) -> ReconstructionUNet:
    torch.manual_seed(0)
    return ReconstructionUNet(base_channels=2, **arguments)


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["unet_mr_even", "unet_mr_odd"])
def test_golden_output_latent_and_gradients(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        golden = {key: file[key] for key in file.files}
    network = ReconstructionUNet(base_channels=int(golden["chans"]))
    weights = {key: torch.from_numpy(golden[f"param_{n:02d}"]) for n, key in enumerate(network.state_dict())}
    network.load_state_dict(weights, strict=True)
    network.double()  # so that only the reference rounds: half of the difference of two results
    forward = roundings_of(network) // 2
    latents = []
    network.encoder.bottleneck.register_forward_hook(lambda module, inputs, output: latents.append(output))
    output = network(torch.from_numpy(golden["input"]).double()[:, None])
    assert_within(output[:, 0], golden["output"], forward)
    assert_within(pooled_latent(latents[0]), golden["latent"], forward)
    target = torch.from_numpy(golden["target"]).double()
    loss = torch.nn.functional.l1_loss(output[:, 0], target)
    assert_within(loss, golden["l1"].astype(np.float32), forward)
    loss.backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert len(gradients) == 24
    back = 2 * forward + target.numel() // 2  # through the layers twice, and over all pixels
    for number, gradient in enumerate(gradients):
        assert_within(gradient, golden[f"grad_{number:02d}"], back)


def test_parameters_and_keys_at_the_defaults():
    with torch.device("meta"):
        network = ReconstructionUNet()
    # 9 (1 32 + 32 32 + 32 64 + 64 64 + 64 128 + 128 128 + 128 256 + 256 256 + 256 512 + 512 512) down,
    # per level c of 256 .. 32: 4 (2c c) + 9 (2c c + c c) up, and 32 + 1 at the end
    down = 9 * (32 * (1 + 32) + 64 * (32 + 64) + 128 * (64 + 128) + 256 * (128 + 256) + 512 * (256 + 512))
    up = sum(8 * c * c + 27 * c * c for c in (256, 128, 64, 32))
    assert sum(parameter.numel() for parameter in network.parameters()) == down + up + 33 == 7_756_097
    keys = list(network.state_dict())
    assert len(keys) == 24
    assert {key.split(".")[0] for key in keys} == {"encoder", "decoder"}
    assert sum(key.startswith("encoder.bottleneck.") for key in keys) == 2
    with torch.device("meta"):
        residual = [key.replace("decoder.final.", "decoder.final_residual.") for key in keys]
        assert list(ReconstructionUNet(residual=True).state_dict()) == residual


def test_residual_adds_the_input():
    x = image(2, 1, 32, 32)
    plain, residual = small().eval(), small(residual=True).eval()
    assert torch.equal(residual(x), x)  # training starts from the input itself
    with pytest.raises(RuntimeError, match="final_residual"):  # one trained one way is no weight of the other
        residual.load_state_dict(plain.state_dict())
    renamed = {k.replace("decoder.final.", "decoder.final_residual."): v for k, v in plain.state_dict().items()}
    residual.load_state_dict(renamed)
    assert_within(residual(x), plain(x) + x, roundings_of(plain))
    assert_within(torch.jit.script(residual)(x), plain(x) + x, roundings_of(plain))


def test_channels_and_poolings():
    network = small(in_channels=2, out_channels=3, num_pool=2)
    latents = []
    network.encoder.bottleneck.register_forward_hook(lambda module, inputs, output: latents.append(output))
    assert network(image(1, 2, 22, 17)).shape == (1, 3, 22, 17)
    assert latents[0].shape == (1, 8, 5, 4)


def test_pooled_latent_by_hand():
    features = torch.arange(16.0).reshape(1, 1, 4, 4)
    torch.testing.assert_close(pooled_latent(features), torch.tensor([[2.5, 4.5, 10.5, 12.5]]))
    assert pooled_latent(torch.zeros(3, 512, 16, 16)).shape == (3, 2048)


def test_pooled_latent_is_the_adaptive_mean():
    for size in ((1, 1), (2, 3), (5, 8), (7, 7)):
        features = image(2, 3, *size).double()
        wanted = torch.nn.functional.adaptive_avg_pool2d(features, 2).flatten(1)
        torch.testing.assert_close(pooled_latent(features), wanted)


@pytest.mark.parametrize("norm", ["instance", "instance_affine", "batch"])
def test_gradients_are_those_of_activations_in_place_to_the_bit(norm):
    gradients = []
    for inplace in (False, True):
        network = small(norm=norm)
        for module in network.modules():
            if isinstance(module, torch.nn.LeakyReLU):
                assert not module.inplace, "a write into the view of instance normalization costs three copies"
                module.inplace = inplace
        network(image(2, 1, 33, 32)).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(map(torch.equal, *gradients))


def test_dropout_acts_in_training_only():
    network, x = small(dropout=0.5), image(1, 1, 32, 32)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (37, 45), (16, 32), (33, 47)])
def test_scripted_network_equals_the_eager_one(size):
    network, x = small().eval(), image(2, 1, *size)
    scripted = torch.jit.script(network)
    assert_within(scripted(x), network(x), roundings_of(network))
    assert network(x).shape == x.shape


def test_exported_graph_holds_for_odd_and_even_sizes():
    onnx = pytest.importorskip("onnx", reason="the ONNX export needs the extra 'onnx'")
    pytest.importorskip("onnxscript", reason="the ONNX export needs the extra 'onnx'")
    from onnx.reference import ReferenceEvaluator

    network = small(num_pool=1).eval()
    free = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        network, (image(2, 1, 22, 17),), dynamo=True, dynamic_shapes=({0: free, 2: free, 3: free},), verbose=False
    )
    onnx.checker.check_model(program.model_proto)
    graph = ReferenceEvaluator(program.model_proto)
    name = program.model.graph.inputs[0].name
    for size in ((22, 17), (16, 20), (19, 24), (31, 33)):
        x = image(3, 1, *size)
        assert_within(graph.run(None, {name: x.numpy()})[0], network(x), roundings_of(network))


@pytest.mark.parametrize("size", [(64, 64), (45, 37)])
def test_export_of_a_fixed_size(size):
    pytest.importorskip("onnx", reason="the ONNX export needs the extra 'onnx'")
    pytest.importorskip("onnxscript", reason="the ONNX export needs the extra 'onnx'")
    from onnx.reference import ReferenceEvaluator

    network, x = small().eval(), image(1, 1, *size)
    program = torch.onnx.export(network, (x,), dynamo=True, verbose=False)
    result = ReferenceEvaluator(program.model_proto).run(None, {program.model.graph.inputs[0].name: x.numpy()})[0]
    assert_within(result, network(x), roundings_of(network))


@pytest.mark.parametrize("size", [(16, 16), (15, 64), (64, 8)])
def test_too_small_an_image_is_refused(size):
    with pytest.raises(ConfigError, match=f"{size[0]} x {size[1]} is too small for num_pool 4: it needs 16"):
        small()(image(1, 1, *size))


@pytest.mark.parametrize(
    "arguments",
    [{"base_channels": 0}, {"num_pool": 0}, {"dropout": 1.0}, {"residual": True, "out_channels": 2}],
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        ReconstructionUNet(**arguments)
