# SPDX-License-Identifier: Apache-2.0
"""The memory of updates is lent for a round: what a strategy keeps survives, and rounds use it again."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.fl.utils.exchange_object import ExchangeObject

import fedmonai.methods
from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.messages import weights_message
from fedmonai.federated.protocol import Strategy

#: arguments of the strategies that need some, or that keep more with them
ARGUMENTS: dict[str, dict[str, Any]] = {
    "FLMRCMAggregator": {"target_site": "A", "share_features": True},
    "PerSiteMean": {"tensor_owners": {"A": "n"}},
    "FedMRIAggregator": {"shared_keys": ".*", "encoder_keys": "w"},
}


def strategies() -> list[type[Strategy]]:
    files = [
        importlib.import_module(f"fedmonai.methods.{m.name}") for m in pkgutil.iter_modules(fedmonai.methods.__path__)
    ]
    found = {c for module in files for _, c in inspect.getmembers(module, inspect.isclass)}
    return sorted((c for c in found if issubclass(c, Strategy) and not inspect.isabstract(c)), key=lambda c: c.__name__)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)


def test_strategies_are_found() -> None:
    assert len(strategies()) >= 7


@pytest.mark.parametrize("kind", strategies(), ids=lambda kind: kind.__name__)
def test_nothing_that_a_strategy_keeps_is_lent_memory(kind: type[Strategy]) -> None:
    strategy = kind(**ARGUMENTS.get(kind.__name__, {}))
    strategy.initialize({"w": torch.zeros(4), "n": torch.zeros(2)})
    names = strategy.participants(1, ["A", "B", "C", "D", "E"], 0) or ["A", "B", "C", "D", "E"]
    strategy.configure_round(1, names)
    counts = {"num_samples": 1, "num_steps": 1, "num_batches": 1, "round": 1}
    updates = {n: weights_message({"w": torch.rand(4), "n": torch.rand(2)}, **counts) for n in names}
    if "A" in updates and strategy.attachments_up:
        updates["A"][strategy.attachments_up[0]] = {"latents": torch.rand(3, 2)}
    strategy.aggregate(1, updates)
    for update in updates.values():
        for tensor in update.weights.values():
            tensor.fill_(torch.nan)
    messages: dict[str, ExchangeObject] = strategy.configure_round(2, names)
    kept = list(tensors_in(strategy.state_dict()))
    for message in messages.values():
        kept += [*tensors_in(message.weights), *tensors_in(dict(message.items()))]
    assert len(kept) >= 2
    assert all(bool(tensor.isfinite().all()) for tensor in kept)


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
