# SPDX-License-Identifier: Apache-2.0
"""The memory of updates is borrowed for a round: what a strategy keeps survives, and rounds use it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from method_parts import STRATEGIES, examples
from monai.fl.utils.exchange_object import ExchangeObject

from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.messages import weights_message
from fedmonai.federated.protocol import Strategy
from fedmonai.federated.validation import InvalidUpdate


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)


START = {"encoder.weight": torch.zeros(4), "encoder.scale": torch.zeros(2)}
SITES = ["A", "B", "C", "D", "E"]


def round_of(strategy: Strategy, number: int) -> dict[str, ExchangeObject]:
    """A round of random updates with everything attached that the strategy accepts; return what it has sent."""
    names = strategy.participants(number, SITES, 0) or SITES
    messages = strategy.configure_round(number, names)
    generator = torch.Generator().manual_seed(number)
    updates = {}
    for name in names:
        weights = {key: torch.rand(tensor.shape, generator=generator) for key, tensor in START.items()}
        update = weights_message(weights, num_samples=1, num_steps=1, num_batches=1, round=number)
        for attachment in strategy.attachments_up:
            for content in ({key: t.clone() for key, t in weights.items()}, {"latents": torch.rand(3, 2)}):
                update[attachment] = content
                try:
                    strategy.check_update(name, update)
                    break
                except InvalidUpdate:
                    del update[attachment]
        updates[name] = update
    strategy.aggregate(number, updates)
    for update in updates.values():
        for tensor in update.weights.values():
            tensor.fill_(torch.nan)
    return messages


@pytest.mark.parametrize("kind", STRATEGIES, ids=lambda kind: kind.__name__)
def test_nothing_that_a_strategy_keeps_is_borrowed_memory(kind: type[Strategy]) -> None:
    for strategy in examples(kind):
        strategy.initialize(START)
        round_of(strategy, 1)
        messages = strategy.configure_round(2, strategy.participants(2, SITES, 0) or SITES)
        kept = list(tensors_in(strategy.state_dict()))
        for message in messages.values():
            kept += [*tensors_in(message.weights), *tensors_in(dict(message.items()))]
        assert len(kept) >= 2
        assert all(bool(tensor.isfinite().all()) for tensor in kept)


@pytest.mark.parametrize("kind", STRATEGIES, ids=lambda kind: kind.__name__)
def test_a_strategy_continues_from_its_file_to_the_bit(kind: type[Strategy], tmp_path: Path) -> None:
    """Its state holds tensors and plain values only, as torch.load with weights_only wants them."""
    for first, second in zip(examples(kind), examples(kind), strict=True):
        for strategy in (first, second):
            strategy.initialize(START)
        round_of(first, 1)
        torch.save(first.state_dict(), tmp_path / "state.pt")
        second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        sent = [round_of(strategy, 2) for strategy in (first, second)]
        for one, other in zip(tensors_in(sent[0]), tensors_in(sent[1]), strict=True):
            assert torch.equal(one, other)
        assert all(torch.equal(first.global_weights[key], second.global_weights[key]) for key in START)


class Watched(LocalPool):
    """Notes where every update lies."""

    seen: dict[int, set[int]]

    def train(self, name: str, message: ExchangeObject) -> ExchangeObject:
        update = super().train(name, message)
        addresses = self.__dict__.setdefault("seen", {}).setdefault(self._round, set())
        [address] = {min(t.data_ptr() for t in update.weights.values())}
        assert address not in addresses  # no two updates of a round in the same place
        addresses.add(address)
        return update


@pytest.mark.parametrize(("fraction", "at_a_time"), [(1.0, 3), (0.6, 2)])
def test_rounds_use_the_memory_of_the_largest_round(
    tiny_federation: Callable[..., Federation], tmp_path: Path, fraction: float, at_a_time: int
) -> None:
    federation = tiny_federation(tmp_path, kind=Watched, num_rounds=5, fraction=fraction)
    federation.run()
    assert sorted(federation.sites.seen) == [1, 2, 3, 4, 5]
    assert all(len(addresses) == at_a_time for addresses in federation.sites.seen.values())
    assert len(set.union(*federation.sites.seen.values())) == at_a_time


def test_an_update_without_buffers_is_fresh(tiny_federation: Callable[..., Federation], tmp_path: Path) -> None:
    federation = tiny_federation(tmp_path, names="A", num_rounds=1)
    federation.run()
    site = federation.sites.open("A")
    first, second = site.get_weights().weights, site.get_weights().weights
    assert all(torch.equal(first[k], second[k]) and first[k].data_ptr() != second[k].data_ptr() for k in first)
    assert all(first[k].data_ptr() != site.tensors[k].data_ptr() for k in first)
