# SPDX-License-Identifier: Apache-2.0
"""Settings that follow from the device, and mixed precision of a network."""

from __future__ import annotations

import copy

import pytest
import torch

from fedmonai.errors import ConfigError
from fedmonai.networks import device as module
from fedmonai.networks.device import DeviceSettings, half_precision
from fedmonai.networks.prepare import autocast_of, place_network


@pytest.fixture(params=[True, False], ids=["with AMX", "without"])
def amx(request, monkeypatch) -> bool:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: request.param)
    return request.param


def test_auto_is_on_where_it_pays(amx):
    assert half_precision("cpu", "auto") == (torch.bfloat16 if amx else None)
    assert half_precision("cpu", False) is None


def test_what_a_processor_imitates_must_be_asked_for_by_name(amx):
    assert half_precision("cpu", True, "bfloat16") == torch.bfloat16
    if not amx:
        with pytest.raises(ConfigError, match="AMX"):
            half_precision("cpu", True)


@pytest.fixture
def gpu(monkeypatch) -> None:
    """A machine that says it has one GPU; nothing is computed on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


def test_a_device_that_is_not_there_is_refused(gpu):
    assert DeviceSettings("cuda:0").device.index == 0
    with pytest.raises(ConfigError, match="'cuda:1', but this machine has 1 CUDA devices"):
        DeviceSettings("cuda:1")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_a_gpu_takes_bfloat16_if_it_computes_with_it(has_bfloat16, monkeypatch):
    monkeypatch.setattr(module, "_computes_bfloat16", lambda kind: has_bfloat16)
    assert half_precision("cuda", True) == (torch.bfloat16 if has_bfloat16 else torch.float16)
    assert DeviceSettings("cuda", True).scaled is not has_bfloat16
    assert DeviceSettings("cuda", "auto").scaled is False


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("cpu", True, "float16"), "float16 needs a GPU"),
        (("cpu", True, "float8"), "amp_dtype is 'float8'"),
        (("cpu", "yes"), "amp is 'yes'"),
    ],
)
def test_wrong_precisions(arguments, text):
    with pytest.raises(ConfigError, match=text):
        half_precision(*arguments)


def test_a_network_in_mixed_precision_returns_float32_and_survives_a_copy():
    network = place_network(torch.nn.Conv2d(1, 4, 3), "cpu", amp=True, amp_dtype="bfloat16")
    seen: list[torch.dtype] = []
    image = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = torch.nn.functional.conv2d(image, network.weight, network.bias)
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.weight.zero_()
    assert other(image).equal(other.bias[:, None, None].bfloat16().float().expand_as(exact))
    output = network(image)
    assert output.dtype == torch.float32 and list(network.state_dict()) == ["weight", "bias"]
    assert 0 < (output - exact).abs().max() < 2**-6 * exact.abs().max()
    with autocast_of(network):
        seen.append(torch.nn.functional.conv2d(image, network.weight).dtype)
    assert seen == [torch.bfloat16] and autocast_of(torch.nn.Conv2d(1, 4, 3)).__enter__() is None


def test_a_cpu_keeps_what_it_had(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    settings = DeviceSettings("cpu", deterministic=True)
    settings.apply()
    assert not torch.backends.cudnn.benchmark and not torch.are_deterministic_algorithms_enabled()
    assert (settings.cache, settings.fused, settings.pin_memory, settings.log_interval) == ("memory", None, False, 1)


@pytest.mark.usefixtures("gpu")
def test_deterministic_operations_of_a_gpu(monkeypatch):
    for name in ("benchmark", "deterministic"):
        monkeypatch.setattr(torch.backends.cudnn, name, False)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        DeviceSettings("cuda").apply()
        assert torch.backends.cudnn.benchmark and not torch.are_deterministic_algorithms_enabled()
        DeviceSettings("cuda", deterministic=True).apply()
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)
