# SPDX-License-Identifier: Apache-2.0
"""The moving average of a site's own models."""

from __future__ import annotations

import copy

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from fedmonai.errors import ConfigError
from fedmonai.methods.iop_fl import PersonalModel


def trained_to(handler: PersonalModel, network: nn.Module, *values: float) -> None:
    """Rounds whose local training ends with every float tensor of the network at the given value."""

    def train(engine: Engine, value: float) -> None:
        for tensor in network.state_dict().values():
            tensor.fill_(value)

    engine = Engine(train)
    engine.network = network
    handler.attach(engine)
    for value in values:
        engine.run([value], max_epochs=1)


def test_average_over_three_rounds_in_exact_numbers() -> None:
    """P = 2; then 1/4 * 2 + 3/4 * 6 = 5; then 1/4 * 5 + 3/4 * (-1) = 1/2: all exact in binary."""
    network, handler = nn.BatchNorm2d(3), PersonalModel(alpha=0.25)
    assert handler.personal_weights({}) is None
    for values, expected in (((2.0,), 2.0), ((6.0,), 5.0), ((-1.0,), 0.5)):
        trained_to(handler, network, *values)
        assert handler.personal_weights({}).keys() == {"weight", "bias", "running_mean", "running_var"}
        assert all((t == expected).all() for t in handler.personal_weights({}).values())
    assert network.num_batches_tracked.dtype == torch.int64


def test_alpha_of_zero_is_the_last_local_model() -> None:
    network, handler = nn.Linear(2, 2), PersonalModel(alpha=0.0)
    trained_to(handler, network, 3.0, 7.0)
    assert all((t == 7).all() for t in handler.personal_weights({}).values())


def test_no_memory_is_shared_with_the_live_model_or_a_saved_state() -> None:
    network, handler = nn.Linear(2, 2), PersonalModel()
    trained_to(handler, network, 1.0)
    saved = copy.deepcopy(handler.state_dict())
    network.weight.data.fill_(9.0)  # another site's turn, or the next message
    assert (handler.personal_weights({})["weight"] == 1).all()
    other = PersonalModel()
    other.load_state_dict(saved)
    trained_to(other, network, 5.0)
    assert (saved["averaged"]["weight"] == 1).all() and (handler.personal_weights({})["weight"] == 1).all()


def test_a_failed_first_round_leaves_no_personal_model() -> None:
    network, handler = nn.Linear(2, 2), PersonalModel()
    before = copy.deepcopy(handler.state_dict())
    trained_to(handler, network, 1.0)
    handler.load_state_dict(before)  # what a site does after a failed turn
    assert handler.personal_weights({}) is None
    trained_to(handler, network, 4.0)
    assert (handler.personal_weights({})["weight"] == 4).all()


def test_nothing_is_contributed_to_a_message() -> None:
    network, handler = nn.Linear(2, 2), PersonalModel()
    trained_to(handler, network, 1.0)
    assert handler.contribute(Engine(lambda engine, batch: None)) == {}


@pytest.mark.parametrize("alpha", [-0.1, 1.0])
def test_alpha_out_of_range_is_named(alpha: float) -> None:
    with pytest.raises(ConfigError, match=f"personal_alpha is {alpha}"):
        PersonalModel(alpha)
