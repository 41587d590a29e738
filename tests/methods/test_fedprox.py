# SPDX-License-Identifier: Apache-2.0
"""FedProx: the gradient by hand, what is held, and FedAvg at mu = 0 to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from fedmonai.errors import ConfigError
from fedmonai.federated.protocol import RoundContext
from fedmonai.methods.fedprox import ProximalTerm


def trainer(network: nn.Module, handlers: list[Any], batches: int = 3, **options: Any) -> SupervisedTrainer:
    generator = torch.Generator().manual_seed(5)
    data = [{"image": torch.rand(2, 3, generator=generator), "label": torch.zeros(2, 1)} for _ in range(batches)]
    return SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=data,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=nn.MSELoss(),
        train_handlers=handlers,
        decollate=False,
        **options,
    )


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def stepped_by_hand(mu: float, held: tuple[str, ...]) -> dict[str, Tensor]:
    """w <- w - 0.1 (dL/dw + mu (w - w_g)), the penalty written as a loss and differentiated by autograd."""
    network = linear()
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    for batch in trainer(network, []).data_loader:
        loss = nn.functional.mse_loss(network(batch["image"]), batch["label"])
        for name, p in network.named_parameters():
            if name in held:
                loss = loss + 0.5 * mu * (p - start[name]).square().sum()
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for p, gradient in zip(network.parameters(), gradients, strict=True):
                p -= 0.1 * gradient
    return network.state_dict()


@pytest.mark.parametrize("shared", [None, ("weight", "bias"), ("weight",)])
def test_three_steps_by_hand(shared: tuple[str, ...] | None) -> None:
    network, handler = linear(), ProximalTerm(mu=2.0)
    engine = trainer(network, [handler])
    if shared is not None:
        engine.state.round_context = RoundContext(1, "A", {}, [*shared, "some.buffer"])
    engine.run()
    expected = stepped_by_hand(2.0, shared or ("weight", "bias"))
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, expected[key])
    assert not torch.allclose(network.weight, stepped_by_hand(0.0, ())["weight"])
    assert not handler._held


def test_the_reported_loss_is_that_of_the_data() -> None:
    network = linear()
    start = network(trainer(network, []).data_loader[0]["image"]).square().mean().item()
    engine = trainer(network, [ProximalTerm(mu=1e3)], batches=1)
    engine.run()
    assert engine.state.output["loss"].item() == pytest.approx(start)


def test_accumulated_gradients_hold_the_term_once() -> None:
    """The second group of two batches starts away from w_g; four batches in groups of two make two steps."""
    grouped, wide = linear(), linear()
    trainer(grouped, [ProximalTerm(mu=2.0)], batches=4, accumulation_steps=2).run()
    batches = trainer(wide, [], batches=4).data_loader
    pairs = [{k: torch.cat([a[k], b[k]]) for k in a} for a, b in zip(batches[::2], batches[1::2], strict=True)]
    engine = trainer(wide, [ProximalTerm(mu=2.0)], batches=2)
    engine.data_loader = pairs
    engine.run()
    torch.testing.assert_close(grouped.weight, wide.weight)


def test_scaled_gradients_get_a_scaled_term() -> None:
    handler, network = ProximalTerm(mu=0.5), linear()
    engine = trainer(network, [])
    handler._begin(engine)
    with torch.no_grad():
        network.weight += 1.0
    network.weight.grad = torch.zeros(1, 3)
    engine.amp, engine.scaler = True, torch.amp.GradScaler("cpu", init_scale=8.0)
    handler(engine)
    torch.testing.assert_close(network.weight.grad, torch.full((1, 3), 0.5 * 8.0))


def test_mu_zero_is_plain_training_to_the_bit() -> None:
    plain, ours = linear(), linear()
    trainer(plain, []).run()
    trainer(ours, [ProximalTerm(mu=0.0)]).run()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), ours.parameters(), strict=True))


def test_a_failed_turn_lets_go() -> None:
    handler = ProximalTerm(mu=1.0)
    engine = trainer(linear(), [handler])
    handler._begin(engine)
    assert handler._held
    handler.abandon(engine)
    assert not handler._held


@pytest.mark.parametrize("mu", [-0.1, float("nan")])
def test_a_bad_weight_is_named(mu: float) -> None:
    with pytest.raises(ConfigError, match="mu is"):
        ProximalTerm(mu=mu)
