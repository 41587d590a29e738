# SPDX-License-Identifier: Apache-2.0
"""The dual-domain network keeps what was measured, starts from the zero-filled image and trains in both domains."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_within
from torch import Tensor, nn

from fedmonai.errors import ConfigError
from fedmonai.networks.dual_domain import DualDomainUNet
from fedmonai.transforms.batch import PrepareKspace
from fedmonai.transforms.kspace import fft2c
from fedmonai.transforms.masks import KspaceMask, sampling_mask

COILS, ROWS, COLUMNS = 2, 40, 36


def batch(count: int = 3, hybrid_kspace: bool = False) -> dict:
    torch.manual_seed(0)
    images = torch.rand(count, COILS, ROWS, COLUMNS)
    target = images.square().sum(1, keepdim=True).sqrt()[..., 4:-4, 2:-2]
    kspace = [fft2c(image.to(torch.complex64)) for image in images]
    return {
        "kspace": kspace,
        "file": [f"{i}.h5" for i in range(count)],
        "target": target,
        "hybrid_kspace": hybrid_kspace,
    }


def trained(network: DualDomainUNet) -> DualDomainUNet:
    """Weights as after training: the k-space part does something."""
    nn.init.normal_(network.kspace_net.decoder.final_residual.weight)
    return network


@pytest.fixture(params=["radial", "random_2d", "random"])
def prepared(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    mask: KspaceMask = sampling_mask(request.param, 3, 0.1, seed=0)
    image, label, args, kwargs = PrepareKspace(mask, 32, with_kspace=True)(batch())
    assert kwargs == {}
    return image, label, args


def test_measured_samples_stay_and_only_the_others_are_filled_in(prepared: tuple) -> None:
    _, _, (kspace, mask, _, std) = prepared
    assert kspace.shape == (3, COILS, ROWS, COLUMNS) and mask.shape == (3, 1, ROWS, COLUMNS)
    assert (kspace * (1 - mask)).abs().max() == 0
    completed = trained(DualDomainUNet(2, num_pool=3)).complete(kspace / std, mask) * std
    measured = mask.expand_as(kspace) == 1
    assert_within(completed[measured], kspace[measured], 4)  # divided, masked, added and multiplied
    assert (completed[~measured].abs() > 1e-3).float().mean() > 0.9


def test_training_starts_from_the_zero_filled_image(prepared: tuple) -> None:
    """With both last convolutions at zero and a residual image U-Net the output is the input."""
    image, _, args = prepared
    network = DualDomainUNet(2, num_pool=3, residual=True)
    nn.init.zeros_(network.image_net.decoder.final_residual.weight)
    nn.init.zeros_(network.image_net.decoder.final_residual.bias)
    output = network(image, *args)
    assert output.shape == image.shape == (3, 1, 32, 32)
    # two transforms of 40 x 36 samples and back, coils added, normalized; divided by the image's spread of about 1/4
    assert_within(output.clamp(-6, 6), image, 4 * (ROWS + COLUMNS), scale=6.0)


def test_all_of_both_networks_is_trained(prepared: tuple) -> None:
    image, label, args = prepared
    network = trained(DualDomainUNet(2, num_pool=3))
    nn.functional.l1_loss(network(image, *args), label).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all()
        # a bias before an instance normalization would have none, but there is no such bias
        assert parameter.grad.abs().sum() > 0, name
    encoders = {name.split(".")[0] for name, _ in network.named_parameters() if ".encoder." in name}
    assert encoders == {"kspace_net", "image_net"}


def test_blank_slice_gives_finite_gradients() -> None:
    data = batch(1)
    data["kspace"][0].zero_()
    data["target"].zero_()
    image, label, args, _ = PrepareKspace(sampling_mask("radial", 3), 32, with_kspace=True)(data)
    network = trained(DualDomainUNet(2, num_pool=3))
    nn.functional.l1_loss(network(image, *args), label).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_size_in_parameters() -> None:
    """Twice the U-Net of one channel, and for the second one in and out 32 * 9 weights, 32 weights and a bias."""
    assert sum(p.numel() for p in DualDomainUNet().parameters()) == 2 * 7_756_097 + 32 * 9 + 32 + 1


def test_what_it_cannot_work_on_is_refused() -> None:
    prepare = PrepareKspace(sampling_mask("random", 3), 32, with_kspace=True)
    with pytest.raises(ConfigError, match="set hybrid_kspace: false"):
        prepare(batch(hybrid_kspace=True))
    mixed = batch(2)
    mixed["kspace"][1] = fft2c(torch.rand(COILS, ROWS, COLUMNS + 4).to(torch.complex64))
    with pytest.raises(ConfigError, match=r"0.h5 \(2, 40, 36\) and 1.h5 \(2, 40, 40\).*batch_size to 1"):
        prepare(mixed)
