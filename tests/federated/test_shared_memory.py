# SPDX-License-Identifier: Apache-2.0
"""Sites that keep nothing of their network share its memory, and lend it to a mean that needs no update twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from run_results import rounds, same_run

from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.site import SiteAlgo
from fedmonai.federated.validation import UpdateValidator
from fedmonai.methods.averaging import WeightedMean
from fedmonai.methods.robust import Median

AT_ONCE = {"guard": UpdateValidator(max_norm_ratio=None)}


def places(site: SiteAlgo) -> set[int]:
    return {tensor.data_ptr() for tensor in site.network.state_dict().values()}


@pytest.fixture
def separate(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(SiteAlgo, "share_memory", lambda self, common: None)


@pytest.mark.parametrize("options", [{}, AT_ONCE], ids=["together", "at once"])
@pytest.mark.parametrize("strategy", [lambda: WeightedMean("uniform"), lambda: WeightedMean("samples"), Median])
def test_shared_and_separate_networks_give_the_same_to_the_bit(
    options: dict, strategy: Callable, tmp_path: Path, tiny_federation: Callable[..., Federation], separate: Callable
) -> None:
    shared = tiny_federation(
        tmp_path / "shared", names="ABCDE", strategy=strategy(), site_options=options, fraction=0.8
    )
    shared.run()
    assert len(set.union(*(places(shared.sites.open(name)) for name in "ABCDE"))) == len(places(shared.sites.open("A")))
    separate()
    apart = tiny_federation(tmp_path / "apart", names="ABCDE", strategy=strategy(), fraction=0.8)
    apart.run()
    assert places(apart.sites.open("A")).isdisjoint(places(apart.sites.open("B")))
    assert same_run(tmp_path / "shared", tmp_path / "apart")


def test_at_once_no_update_has_memory_of_its_own(tmp_path: Path, tiny_federation: Callable[..., Federation]) -> None:
    federation = tiny_federation(tmp_path, site_options=AT_ONCE)
    federation.run()
    assert not federation.sites._updates._free and not federation.sites._updates._borrowed
    assert not federation._updates


def double(message: Any, extra: Any) -> Any:
    for tensor in message.weights.values():
        tensor.mul_(2)
    return message


def test_a_filter_never_gets_the_sites_own_tensors(tmp_path: Path, tiny_federation: Callable[..., Federation]) -> None:
    federation = tiny_federation(
        tmp_path, names="A", site_options={**AT_ONCE, "exchange_filters": [double]}, num_rounds=1
    )
    federation.run()
    own, sent = federation.sites.open("A").tensors, federation.strategy.global_weights
    assert all(torch.equal(2 * own[key], sent[key]) for key in own)


class FailsInRound2(LocalPool):
    def train(self, name: str, message: Any) -> Any:
        site = self.open(name)
        if (name, self._round) == ("B", 2):
            handler = site.trainer.add_event_handler(Events.ITERATION_COMPLETED, fail)
            try:
                return super().train(name, message)
            finally:
                handler.remove()
        return super().train(name, message)


def fail(engine: Any) -> None:
    for tensor in engine.network.state_dict().values():
        tensor.fill_(torch.nan)
    raise RuntimeError("broken")


@pytest.mark.parametrize("options", [{}, AT_ONCE], ids=["together", "at once"])
def test_what_a_failed_site_leaves_in_shared_memory_reaches_nobody(
    options: dict, tmp_path: Path, tiny_federation: Callable[..., Federation], separate: Callable
) -> None:
    tiny_federation(tmp_path / "shared", kind=FailsInRound2, site_options=options).run()
    separate()
    tiny_federation(tmp_path / "apart", kind=FailsInRound2).run()
    assert [sorted(record["failed"]) for record in rounds(tmp_path / "shared")] == [[], ["B"], []]
    assert same_run(tmp_path / "shared", tmp_path / "apart")


def test_a_site_with_private_weights_shares_nothing(tmp_path: Path, tiny_federation: Callable[..., Federation]) -> None:
    strategy = WeightedMean(local_keys=r".*bias")
    federation = tiny_federation(tmp_path, strategy=strategy, num_rounds=1)
    federation.run()
    assert places(federation.sites.open("A")).isdisjoint(places(federation.sites.open("B")))


def test_a_site_that_waits_holds_no_gradients(tmp_path: Path, tiny_federation: Callable[..., Federation]) -> None:
    federation = tiny_federation(tmp_path, num_rounds=1)
    federation.run()
    assert all(weight.grad is None for name in "ABC" for weight in federation.sites.open(name).network.parameters())


def test_a_site_that_is_built_again_begins_with_the_weights_it_was_built_with(
    tmp_path: Path, tiny_federation: Callable[..., Federation]
) -> None:
    federation = tiny_federation(tmp_path, names="A", num_rounds=1)
    first = federation.sites.initial_weights("A")
    federation.run()
    federation.sites.evict("A")
    again = federation.sites.initial_weights("A")
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], federation.strategy.global_weights[key]) for key in first)
