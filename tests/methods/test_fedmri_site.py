# SPDX-License-Identifier: Apache-2.0
"""When the weight contrast is part of a site's loss, against which weights, and what is kept of it."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from fedmonai.errors import ConfigError
from fedmonai.federated.protocol import RoundContext
from fedmonai.methods.fedmri import WeightContrast

RATE = 0.125


class Tiny(nn.Module):
    """y = decoder * encoder * x, one weight each."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(1, 1, bias=False)
        self.decoder = nn.Linear(1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def site(handler: WeightContrast, iterations: int = 3) -> Any:
    """A trainer with plain gradient descent on f = mean of the prediction; both weights start at 1."""
    network = Tiny()
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    losses: list[float] = []
    contrasts: list[float | None] = []
    engine = SupervisedTrainer(
        torch.device("cpu"),
        1,
        [{"image": torch.ones(1, 1), "label": torch.zeros(1, 1)}] * iterations,
        network,
        torch.optim.SGD(network.parameters(), lr=RATE),
        lambda pred, label: pred.mean(),
        train_handlers=[handler],
        decollate=False,
    )

    def note(trainer: Any) -> None:
        losses.append(float(trainer.state.output["loss"]))
        found = trainer.state.output.get("weight_contrast")
        contrasts.append(None if found is None else float(found))

    engine.add_event_handler("ITERATION_COMPLETED", note)
    return SimpleNamespace(engine=engine, network=network, losses=losses, contrasts=contrasts)


def run(own: Any, number: int, previous: dict[str, float] | None, epochs: int = 1) -> None:
    """One round, received as SiteAlgo hands it on; ``previous`` is each site's encoder after the round before."""
    state = own.engine.state
    received = {}
    if previous is not None:
        tensors = {f"{site}/encoder.weight": torch.full((1, 1), value) for site, value in previous.items()}
        received = {"previous_encoders": tensors}
    state.round_context = RoundContext(number, "A", received, ["encoder.weight"])
    state.max_epochs = state.epoch + epochs
    own.engine.run()


def weights(own: Any) -> tuple[float, float]:
    return own.network.encoder.weight.item(), own.network.decoder.weight.item()


def test_steps_by_hand() -> None:
    """g = 1, r = (0, 2). First iteration plain: e = d = 1 - 1/8 = 7/8.

    Second: N = 1/8, D = 7/8 + 9/8 = 2, R = 1/16, dR/de = sign(-1/8)/2 - 1/32 (1 - 1) = -1/2; with lam = 2, beta = 1/2
    de = 2 * 7/8 - 1/4 = 3/2, dd = 2 * 7/8 = 7/4.
    """
    own = site(WeightContrast(beta=0.5, lam=2.0), iterations=2)
    run(own, 2, {"A": 0.0, "B": 2.0})
    assert weights(own) == (7 / 8 - 3 / 16, 7 / 8 - 7 / 32)
    assert own.contrasts == [None, 1 / 16]
    assert own.losses == [1.0, 49 / 64]  # of the reconstruction alone, so that it compares between methods


def test_first_iteration_of_every_epoch_is_plain() -> None:
    own = site(WeightContrast(beta=1.0))
    run(own, 2, {"A": 0.0}, epochs=2)
    run(own, 3, {"A": 0.0})
    assert [c is None for c in own.contrasts] == [True, False, False] * 3


def test_first_round_is_plain() -> None:
    own = site(WeightContrast(beta=1.0))
    run(own, 1, {})
    assert own.contrasts == [None] * 3


def test_degenerate_settings_equal_plain_training_to_the_bit() -> None:
    plain = site(WeightContrast(beta=1.0))
    run(plain, 1, {})
    for handler in (WeightContrast(beta=0.0), WeightContrast(negatives="none")):
        own = site(handler)
        run(own, 2, {"A": 0.5})
        assert weights(own) == weights(plain)
    own = site(WeightContrast(beta=1.0))
    run(own, 2, {"A": 0.5})
    assert weights(own) != weights(plain)


def test_self_uses_the_own_encoder_of_the_round_before_and_nothing_received() -> None:
    """Both weights see the same gradient by symmetry: after plain training the decoder equals the encoder."""
    handler = WeightContrast(beta=1.0, negatives="self")
    own = site(handler)
    run(own, 1, None)
    after = weights(own)[0]
    assert weights(own)[1] == after
    assert handler.state_dict()["own"]["encoder.weight"].item() == after
    with torch.no_grad():
        own.network.encoder.weight.fill_(1.0)  # what the server's message does
    run(own, 2, None)
    assert own.contrasts[:4] == [None] * 4 and None not in own.contrasts[4:]
    same = site(WeightContrast(beta=1.0))
    with torch.no_grad():
        same.network.decoder.weight.copy_(torch.tensor([[after]]))
    run(same, 2, {"me": after})
    assert weights(same) == weights(own)


def test_state_survives_and_a_failed_turn_does_not_leak() -> None:
    handler, fresh = WeightContrast(negatives="self"), WeightContrast(negatives="self")
    own = site(handler)
    run(own, 1, None)
    fresh.load_state_dict(handler.state_dict())
    assert torch.equal(fresh.state_dict()["own"]["encoder.weight"], handler.state_dict()["own"]["encoder.weight"])
    handler.abandon(own.engine)
    assert handler.state_dict()["own"]
    assert WeightContrast().state_dict() == {"own": {}}


def test_a_client_without_attachments_trains_plainly_and_says_so_once() -> None:
    own = site(WeightContrast())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        own.engine.run()
        own.engine.state.max_epochs += 1
        own.engine.run()
    assert [str(w.message) for w in caught if "previous encoders" in str(w.message)] == [
        "negatives is 'all', but this client hands on no previous encoders: the term is off."
    ]
    assert own.contrasts == [None] * 6


def test_the_limit_by_hand() -> None:
    """As :func:`test_steps_by_hand`, with beta = 14, lam = 1: beta |dR/de| = 7 against |dL/de| = d = 7/8, 8 times it.

    With the limit 1/2 what is added to 7/8 is -7/16; the decoder sees e = 7/8 alone.
    """
    handler = WeightContrast(beta=14.0, max_contrast_ratio=0.5)
    own = site(handler, iterations=2)
    run(own, 2, {"A": 0.0, "B": 2.0})
    assert weights(own) == (7 / 8 - 7 / 16 / 8, 7 / 8 - 7 / 8 / 8)
    found = handler.training_metrics()
    assert found["contrast_ratio"] == 0.5
    assert found["contrast_ratio_unlimited"] == 8.0
    assert found["encoder_step"] == 1 - weights(own)[0]
    free = site(WeightContrast(beta=14.0, max_contrast_ratio=None), iterations=2)
    run(free, 2, {"A": 0.0, "B": 2.0})
    assert weights(free)[0] == 7 / 8 - (7 / 8 - 7) / 8


@pytest.mark.parametrize(
    "arguments", [{"negatives": "others"}, {"beta": -1}, {"lam": float("nan")}, {"max_contrast_ratio": 0.0}]
)
def test_wrong_settings_are_refused(arguments: dict) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(arguments.values())))):
        WeightContrast(**arguments)


def test_a_strategy_without_previous_encoders_and_another_network_are_named() -> None:
    with pytest.raises(ConfigError, match=r"came without 'previous_encoders'.*FedMRIAggregator"):
        run(site(WeightContrast()), 2, None)
    with pytest.raises(ConfigError, match=r"encoder_keys: the pattern .* matches none"):
        run(site(WeightContrast(encoder_keys="unet")), 2, {})
    own = site(WeightContrast())
    received = {"previous_encoders": {"B/encoder.weight": torch.ones(2)}}
    own.engine.state.round_context = RoundContext(2, "A", received, ["encoder.weight"])
    with pytest.raises(ConfigError, match=r"'encoder\.weight' of site 'B' .*another shape"):
        own.engine.run()
