# SPDX-License-Identifier: Apache-2.0
"""The simulation itself: it computes as a CPU does, and sees what a CUDA device would refuse or wait for."""

from __future__ import annotations

import pytest
import simulated_cuda
import torch

pytestmark = pytest.mark.skipif(bool(simulated_cuda.UNAVAILABLE), reason="the device is real")


def test_it_computes_as_a_cpu_does() -> None:
    network, image = torch.nn.Conv2d(1, 2, 3), torch.randn(2, 1, 8, 8)
    wanted = torch.autograd.grad(network(image).square().sum(), list(network.parameters()))
    with simulated_cuda.device() as log:
        network = network.to("cuda")
        loss = network(image.to("cuda", non_blocking=True)).square().sum()
        assert loss.is_cuda and loss.device == torch.device("cuda:0")
        found = torch.autograd.grad(loss, list(network.parameters()))
        assert all(torch.equal(a, b.cpu()) for a, b in zip(wanted, found, strict=True))
    assert not log.mixed


@pytest.mark.parametrize(
    ("what", "action"),
    [
        ("item", lambda x: float(x.sum())),
        ("item", lambda x: bool(x[0] > 0)),
        ("download", lambda x: x.cpu()),
        ("blocking upload", lambda x: torch.zeros(4).to("cuda")),
        ("blocking upload", lambda x: x.copy_(torch.zeros(4))),
        ("index by a mask", lambda x: x[x > 0]),
        ("nonzero", lambda x: x.nonzero()),
        ("", lambda x: x.copy_(torch.zeros(4), non_blocking=True)),
        ("", lambda x: torch.where(x > 0, x, 0.0).sum()),
        ("", lambda x: x + torch.tensor(1.0)),
    ],
)
def test_it_sees_what_a_host_waits_for(what, action) -> None:
    with simulated_cuda.device() as log:
        x = torch.ones(4, device="cuda")
        log.clear()
        action(x)
    assert [kind for _, kind, _ in log.waits] == ([what] if what else [])


@pytest.mark.parametrize("action", [torch.add, torch.nn.functional.mse_loss, lambda a, b: torch.cat([a, b])])
def test_it_refuses_mixed_devices(action) -> None:
    with simulated_cuda.device() as log:
        with pytest.raises(RuntimeError, match=r"cuda:0 and on cpu \(4,\)"):
            action(torch.ones(4, device="cuda"), torch.ones(4))
        assert len(log.mixed) == 1


def test_shapes_alone_count_kernels_and_bytes() -> None:
    with simulated_cuda.device(shapes_only=True) as log:
        x = torch.empty(1 << 20, 1 << 10, device="cuda")
        log.clear()
        assert x.add_(1).shape == (1 << 20, 1 << 10)
    assert sum(log.kernels.values()) == 1 and sum(log.moved_bytes.values()) == 2 * 4 * 2**30
