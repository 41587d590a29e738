# SPDX-License-Identifier: Apache-2.0
"""Seven iterations move the head alone, the last three everything else, to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from fedmonai.errors import ConfigError
from fedmonai.methods.fedicra import AlternatingParameters


class TwoParts(nn.Module):
    """A body with batch normalization and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.LeakyReLU())
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(image))


Values = dict[str, Tensor]


def run(network: nn.Module, set_to_none: bool = True, rep_iters: int = 3, fail_at: int = 0) -> dict[int, Values]:
    """Parameters before (0) and after each of ten iterations."""
    generator = torch.Generator().manual_seed(1)
    batches = [
        {
            "image": torch.rand(2, 1, 8, 8, generator=generator),
            "label": torch.randint(2, (2, 8, 8), generator=generator),
        }
        for _ in range(10)
    ]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=batches,
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.01),
        loss_function=nn.CrossEntropyLoss(),
        optim_set_to_none=set_to_none,
        decollate=False,
    )
    handler = AlternatingParameters(network, r"head\.", rep_iters)
    handler.attach(trainer)
    taken = {0: parameters(network)}

    def take(engine: Engine) -> None:
        taken[engine.state.iteration] = parameters(network)
        if engine.state.iteration == fail_at:
            handler.abandon(engine)

    trainer.add_event_handler(Events.ITERATION_COMPLETED, take)
    trainer.run()
    return taken


def parameters(network: nn.Module) -> Values:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def changed(before: Values, after: Values) -> set[str]:
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return TwoParts()


def test_head_first_body_last_to_the_bit(network: nn.Module) -> None:
    taken = run(network)
    assert changed(taken[0], taken[7]) == {"head"}
    assert changed(taken[7], taken[10]) == {"body"}
    assert all(changed(taken[i], taken[i + 1]) == ({"head"} if i < 7 else {"body"}) for i in range(10))
    assert all(p.requires_grad for p in network.parameters())  # a round leaves everything trainable


def test_statistics_follow_the_data_in_both_phases(network: nn.Module) -> None:
    run(network)
    assert int(network.get_buffer("body.1.num_batches_tracked")) == 10


def test_with_zero_gradients_momentum_moves_the_head_in_the_last_phase(network: nn.Module) -> None:
    """The authors' program: gradients are set to zero instead of being dropped, so AdamW goes on moving parameters."""
    taken = run(network, set_to_none=False)
    assert changed(taken[7], taken[10]) == {"head", "body"}


def test_parameters_that_were_frozen_stay_frozen(network: nn.Module) -> None:
    network.body[0].weight.requires_grad_(False)
    taken = run(network)
    assert torch.equal(taken[0]["body.0.weight"], taken[10]["body.0.weight"])
    assert not network.body[0].weight.requires_grad


def test_a_failed_turn_leaves_everything_trainable(network: nn.Module) -> None:
    handler = AlternatingParameters(network, r"head\.", 3)
    handler._allow(head=False, body=True)
    handler.abandon(Engine(lambda engine, batch: None))
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda n: AlternatingParameters(n, r"head\.", 0), "rep_iters is 0"),
        (lambda n: AlternatingParameters(n, "hed"), "head_keys: the pattern 'hed' matches none of the 6"),
        (lambda n: AlternatingParameters(n, "("), "not a regular expression"),
        (lambda n: run(n, rep_iters=10), "a round has 10 iterations"),
    ],
    ids=["no representation", "misspelt", "no pattern", "no head"],
)
def test_mistakes_are_named(network: nn.Module, make: Callable, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make(network)
