# SPDX-License-Identifier: Apache-2.0
"""A round begins from a learned mixture of the received and the own decoder; nothing else is touched."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.engines.utils import default_prepare_batch
from torch import Tensor, nn

from fedmonai.errors import ConfigError
from fedmonai.federated.protocol import RoundContext
from fedmonai.methods.fedicra import FedALA


class Net(nn.Module):
    """A shared body with dropout and statistics, and a decoder that is mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.3))
        self.decoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.decoder(self.body(image))


State = dict[str, Tensor]
MIXED = "decoder."
STATISTICS = ("decoder.1.running_mean", "decoder.1.running_var")


def state_of(seed: int) -> State:
    torch.manual_seed(seed)
    state = {name: tensor.clone() for name, tensor in Net().state_dict().items()}
    for name in state:
        if "running" in name:
            state[name] = torch.rand_like(state[name]) + 0.5
    return state


OWN, RECEIVED = state_of(1), state_of(2)
SAMPLES = [
    {
        "image": torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(i)),
        "label": torch.ones(8, 8).long() * (i % 2),
    }
    for i in range(6)
]


class Site:
    """What the handler sees of a site, without a trainer."""

    def __init__(self, **settings: Any) -> None:
        self.network = Net()
        options = {"keys": r"decoder\.", "batch_size": 2, "warm_up": 0, "share": 1.0, **settings}
        self.handler = FedALA(self.network, nn.CrossEntropyLoss(), SAMPLES, **options)
        self.handler._rounds = 1  # the site has trained before
        self.round = 0

    def begin(self, number: int, previous: State | None = OWN, received: State = RECEIVED) -> State:
        """Weights with which the training of a round begins."""
        self.network.load_state_dict(received)
        self.handler.set_random_state(number)
        context = RoundContext(number, "A", {}, list(received), previous)
        state = SimpleNamespace(round_context=context, device=torch.device("cpu"))
        self.handler(SimpleNamespace(state=state, prepare_batch=default_prepare_batch))
        return {name: tensor.clone() for name, tensor in self.network.state_dict().items()}


def differing(first: State, second: State) -> set[str]:
    return {name for name in first if not torch.equal(first[name], second[name])}


def test_without_learning_each_order_gives_its_start_to_the_bit() -> None:
    assert not differing(Site(eta=0.0).begin(5), RECEIVED)
    mixed = Site(eta=0.0, order="released").begin(5)
    float_names = {name for name in OWN if OWN[name].is_floating_point()}
    assert not {n for n in differing(mixed, OWN) if n.startswith(MIXED) and n in float_names}
    assert not {n for n in differing(mixed, RECEIVED) if not n.startswith(MIXED)}


def test_learning_moves_the_decoder_only_and_lowers_the_loss() -> None:
    site = Site(eta=1.0)
    mixed = site.begin(5)
    moved = differing(mixed, RECEIVED)
    assert moved and all(name.startswith(MIXED) for name in moved)
    images = torch.stack([s["image"] for s in SAMPLES])
    labels = torch.stack([s["label"] for s in SAMPLES])

    def loss(state: State) -> float:
        site.network.load_state_dict(state)
        for module in site.network.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        return nn.CrossEntropyLoss()(site.network(images), labels).item()

    site.network.train()
    assert loss(mixed) < loss(RECEIVED)


def test_mixture_is_the_formula_and_statistics_follow_their_scale() -> None:
    site = Site()
    mixed = site.begin(5)
    weights = site.handler.mix.weights
    for name in weights:
        assert bool(((weights[name] >= 0) & (weights[name] <= 1)).all())
        torch.testing.assert_close(mixed[name], OWN[name] + (RECEIVED[name] - OWN[name]) * weights[name])
    for name in STATISTICS:
        weight = weights["decoder.1.weight"]
        torch.testing.assert_close(mixed[name], OWN[name] + (RECEIVED[name] - OWN[name]) * weight)
    left = Site(mix_statistics=False).begin(5)
    assert all(torch.equal(left[name], RECEIVED[name]) for name in STATISTICS)


def test_weights_persist_over_rounds_unless_told_otherwise() -> None:
    kept, forgotten = Site(), Site(persist=False)
    for site in (kept, forgotten):
        site.begin(5)
        site.handler.mix.weights = {name: w * 0 + 0.25 for name, w in site.handler.mix.weights.items()}
        site.handler.mix.eta = 0.0
        site.begin(6)
    assert all(bool((w == 0.25).all()) for w in kept.handler.mix.weights.values())
    assert all(bool((w == 1).all()) for w in forgotten.handler.mix.weights.values())


@pytest.mark.parametrize(
    ("settings", "number", "rounds", "mixes"),
    [
        ({"warm_up": 5}, 5, 1, False),
        ({"warm_up": 5}, 6, 1, True),
        ({}, 5, 0, False),
        # the release evaluates after rounds 2, 4, ..., which spoils rounds 3, 5, ...; round 1 is spoilt by the start
        ({"evaluation_interval": 2}, 7, 1, False),
        ({"evaluation_interval": 2}, 8, 1, True),
    ],
    ids=["warm-up", "after it", "first round of the site", "after an evaluation", "no evaluation"],
)
def test_rounds_that_mix(settings: dict, number: int, rounds: int, mixes: bool) -> None:
    site = Site(**settings)
    site.handler._rounds = rounds
    assert bool(differing(site.begin(number), RECEIVED)) is mixes


def test_equal_decoders_are_left_alone() -> None:
    site = Site()
    assert not differing(site.begin(5, previous=RECEIVED), RECEIVED)
    assert not site.handler.mix.weights


def test_mixing_leaves_mode_statistics_and_random_numbers_alone() -> None:
    site = Site(mix_statistics=False)
    site.network.eval()
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    mixed = site.begin(5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not site.network.training
    assert not {name for name in differing(mixed, RECEIVED) if "running" in name or "tracked" in name}
    assert all(p.grad is None for p in site.network.parameters())


def test_same_seed_same_mixture() -> None:
    assert not differing(Site(share=0.5).begin(5), Site(share=0.5).begin(5))
    assert differing(Site(share=0.5).begin(5), Site(share=0.5).begin(6))


def test_first_mixing_takes_passes_until_the_loss_settles_later_ones_take_one() -> None:
    site = Site(window=3, tolerance=1e9, max_passes=9)
    calls: list[int] = []
    learn = site.handler.mix.learn
    site.handler.mix.learn = lambda *a: (calls.append(1), learn(*a))  # type: ignore[method-assign, assignment]
    site.begin(5)
    assert len(calls) == 4 * 3  # more than `window` passes are made, of three batches each
    site.begin(6)
    assert len(calls) == 5 * 3
    restless = Site(window=3, tolerance=0.0, max_passes=6)
    restless.handler.mix.learn = lambda *a: calls.append(1)  # type: ignore[method-assign, assignment]
    calls.clear()
    restless.begin(5)
    assert len(calls) == 6 * 3


def test_state_survives_a_file(tmp_path: Any) -> None:
    first, second = Site(), Site()
    first.begin(5)
    torch.save(first.handler.state_dict(), tmp_path / "state.pt")
    second.handler.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert not differing(first.begin(6), second.begin(6))


def test_personal_weights_mix_what_is_held_and_change_nothing() -> None:
    site = Site()
    assert site.handler.personal_weights(RECEIVED) is None  # nothing has been mixed yet
    site.begin(5)
    site.network.load_state_dict(OWN)  # what the site holds after its training
    before = {name: w.clone() for name, w in site.handler.mix.weights.items()}
    personal = site.handler.personal_weights(RECEIVED)
    assert personal is not None
    assert set(personal) == {n for n in OWN if n.startswith(MIXED) and not n.endswith("tracked")}
    for name, weight in before.items():
        torch.testing.assert_close(personal[name], OWN[name] + (RECEIVED[name] - OWN[name]) * weight)
        assert torch.equal(site.handler.mix.weights[name], weight)
    assert not differing(dict(site.network.state_dict()), OWN)


def test_stock_client_is_warned_once() -> None:
    site = Site()
    with pytest.warns(UserWarning, match="nothing is mixed") as caught:
        assert not differing(site.begin(5, previous=None), RECEIVED)
        site.begin(6, previous=None)
    assert len([w for w in caught if "nothing is mixed" in str(w.message)]) == 1


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"share": 0.0}, "mixing_share is 0"),
        ({"keys": "decodr"}, "mixing_keys: the pattern 'decodr'"),
        ({"warm_up": -1}, "warm_up is -1"),
        ({"window": 1}, "window is 1"),
        ({"order": "other"}, "mixing_order is 'other'"),
    ],
)
def test_wrong_settings_are_named(settings: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Site(**settings)
