# SPDX-License-Identifier: Apache-2.0
"""A federation with one hostile site: refused with site and reason, the round goes on, nothing of it in the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback import Wire, close
from monai.fl.utils.exchange_object import ExchangeObject
from run_results import final, rounds, same_run

from fedmonai.errors import FederationError
from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.messages import Reply
from fedmonai.federated.remote_pool import RemotePool
from fedmonai.federated.service import SiteService
from fedmonai.federated.validation import UpdateValidator
from fedmonai.methods.averaging import WeightedMean

#: the last layer of the tiny network
PRIVATE = (r"output",)


def first(update: ExchangeObject) -> str:
    return next(iter(update.weights))


def replaced(change: Callable[[torch.Tensor], Any]) -> Callable[[ExchangeObject], Any]:
    def spoil(update: ExchangeObject) -> ExchangeObject:
        update.weights[first(update)] = change(update.weights[first(update)])
        return update

    return spoil


def huge(update: ExchangeObject) -> ExchangeObject:
    """Within ``max_abs``, and the end of all training that starts from a mean with it."""
    update.weights = {key: torch.full_like(tensor, 1e7) for key, tensor in update.weights.items()}
    return update


def counted(**numbers: Any) -> Callable[[ExchangeObject], Any]:
    def spoil(update: ExchangeObject) -> ExchangeObject:
        update.statistics.update(numbers)
        return update

    return spoil


def without_first(update: ExchangeObject) -> ExchangeObject:
    del update.weights[first(update)]
    return update


def renamed(update: ExchangeObject) -> ExchangeObject:
    update.weights["other.weight"] = update.weights.pop(first(update))
    return update


def with_extra(update: ExchangeObject) -> ExchangeObject:
    update.weights["extra"] = torch.zeros(1)
    return update


def with_attachment(update: ExchangeObject) -> ExchangeObject:
    update["patients"] = {"x": torch.zeros(1)}
    return update


def without_loss(update: ExchangeObject) -> ExchangeObject:
    del update.statistics["loss"]
    return update


def emptied(update: ExchangeObject) -> ExchangeObject:
    update.weights = {}
    return update


def of_the_round_before(update: ExchangeObject) -> ExchangeObject:
    update.statistics["round"] -= 1
    return update


SPOILT: dict[str, tuple[Callable[[ExchangeObject], Any], str]] = {
    "NaN": (replaced(lambda t: torch.full_like(t, math.nan)), "NaN or infinite"),
    "one NaN": (replaced(lambda t: t.index_fill(0, torch.tensor([0]), math.nan)), "NaN or infinite"),
    "Inf": (replaced(lambda t: t / 0.0), "NaN or infinite"),
    "1e9": (replaced(lambda t: torch.full_like(t, 1e9)), "max_abs"),
    "-1e9": (replaced(lambda t: torch.full_like(t, -1e9)), "max_abs"),
    "1e7": (huge, "max_norm_ratio"),
    "missing key": (without_first, "1 tensors are missing"),
    "wrong key": (renamed, "'other.weight'"),
    "extra key": (with_extra, "not shared, for example 'extra'"),
    "transposed": (replaced(lambda t: t.T.contiguous()), "has shape (4, 8), not (8, 4)"),
    "half": (replaced(torch.Tensor.half), "float16, not torch.float32"),
    "bfloat16": (replaced(torch.Tensor.bfloat16), "bfloat16, not torch.float32"),
    "double": (replaced(torch.Tensor.double), "float64, not torch.float32"),
    "integer": (replaced(torch.Tensor.long), "int64, not torch.float32"),
    "numpy": (replaced(torch.Tensor.numpy), "is ndarray, not a tensor"),
    "zero samples": (counted(num_samples=0), "num_samples is 0"),
    "negative samples": (counted(num_samples=-4), "num_samples is -4"),
    "infinite samples": (counted(num_samples=math.inf), "num_samples is inf"),
    "negative steps": (counted(num_steps=-1), "num_steps is -1"),
    "NaN loss": (counted(loss=math.nan), "loss is nan"),
    "no loss": (without_loss, "loss is None"),
    "empty": (emptied, "tensors are missing"),
    "undeclared attachment": (with_attachment, "undeclared attachment 'patients'"),
    "stale round": (of_the_round_before, "belongs to round 1, not to 2"),
    "no message": (lambda update: None, "NoneType, not a message"),
}


def hostile_sites(spoil: Callable[[ExchangeObject], Any], rounds: set[int]) -> type[LocalPool]:
    class Hostile(LocalPool):
        """Site B spoils its update in some rounds."""

        def train(self, name: str, message: ExchangeObject) -> Any:
            update = super().train(name, message)
            return spoil(update) if name == "B" and self._round in rounds else update

    return Hostile


class Silent(LocalPool):
    """Site B sends nothing in round 2: what the model must be like if nothing of a refused update is in it."""

    def train(self, name: str, message: ExchangeObject) -> ExchangeObject:
        update = super().train(name, message)
        if name == "B" and self._round == 2:
            raise RuntimeError("no update")
        return update


@pytest.fixture(scope="module")
def without_b(tmp_path_factory: pytest.TempPathFactory, tiny_federation: Callable) -> Path:
    out = tmp_path_factory.mktemp("silent")
    tiny_federation(out, kind=Silent).run()
    return out


@pytest.mark.parametrize("kind", SPOILT)
def test_bad_update_is_left_out_with_its_reason(
    kind: str, tmp_path: Path, without_b: Path, tiny_federation: Callable
) -> None:
    spoil, reason = SPOILT[kind]
    tiny_federation(tmp_path, kind=hostile_sites(spoil, {2})).run()
    records = rounds(tmp_path)
    assert list(records[1]["failed"]) == ["B"]
    assert reason in records[1]["failed"]["B"]
    assert records[1]["completed"] == ["A", "C"]
    assert [r["completed"] for r in records[::2]] == [["A", "B", "C"]] * 2
    expected, found = final(without_b), final(tmp_path)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_too_few_good_updates_stop_the_run_with_the_last_good_state(tmp_path: Path, tiny_federation: Callable) -> None:
    spoil = SPOILT["NaN"][0]
    engine = tiny_federation(tmp_path, kind=hostile_sites(spoil, {2}), min_sites=3)
    with pytest.raises(FederationError, match=r"round 2: 2 of 3 .*B: InvalidUpdate: .*NaN or infinite"):
        engine.run()
    assert torch.load(tmp_path / "federation.pt", weights_only=True)["round"] == 1
    resumed: Federation = tiny_federation(tmp_path, resume=True, min_sites=3)
    resumed.run()
    assert torch.load(tmp_path / "federation.pt", weights_only=True)["round"] == 3


def test_a_site_counts_once_however_often_it_is_named(tmp_path: Path, tiny_federation: Callable) -> None:
    """Two turns of one site would give it two votes."""
    engine = tiny_federation(tmp_path, train_sites=["A", "B", "B", "A"])
    engine.strategy.participants = lambda number, sites, seed: ["B", "A", "B"]
    engine.run()
    assert [r["completed"] for r in rounds(tmp_path)] == [["A", "B"]] * 3
    assert engine.sites.open("B").trainer.state.iteration == 6


@pytest.mark.parametrize("in_memory", [None, 1], ids=["all in memory", "one at a time"])
def test_a_refused_turn_is_undone_at_its_site(in_memory: int | None, tmp_path: Path, tiny_federation: Callable) -> None:
    """Private weights and a persistent optimizer go back to where they were, as after a turn that failed by itself."""

    class Failing(LocalPool):
        """Site B's own training fails in round 2."""

        def train(self, name: str, message: ExchangeObject) -> ExchangeObject:
            if name == "B" and self._round == 2:
                raise RuntimeError("no turn")
            return super().train(name, message)

    options = {"pool_options": {"resident_sites": in_memory}}
    for folder, kind in (("failed", Failing), ("refused", hostile_sites(SPOILT["NaN"][0], {2}))):
        tiny_federation(tmp_path / folder, kind=kind, strategy=WeightedMean(local_keys=PRIVATE), **options).run()
    one, two = (
        torch.load(tmp_path / run / "sites" / "B" / "round_0003.pt", weights_only=True) for run in ("failed", "refused")
    )
    assert one["private"] and one["iteration"] == two["iteration"]
    assert all(torch.equal(one["private"][key], two["private"][key]) for key in one["private"])
    assert all(bool(tensor.isfinite().all()) for tensor in two["private"].values())
    finals = [final(tmp_path / run) for run in ("failed", "refused")]
    assert all(torch.equal(finals[0][key], finals[1][key]) for key in finals[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_federation: Callable) -> Path:
    """A run in which nobody is hostile."""
    out = tmp_path_factory.mktemp("whole")
    tiny_federation(out).run()
    return out


#: without the bound on norms, so that the state is ruined
UNBOUNDED = {"site_options": {"guard": UpdateValidator(max_norm_ratio=None)}}


class Once:
    """Spoils the first update that it is given, not those of a repeated round."""

    def __init__(self) -> None:
        self.done = False

    def __call__(self, update: ExchangeObject) -> ExchangeObject:
        if self.done:
            return update
        self.done = True
        return huge(update)


def test_four_sites_measure_each_other_in_the_first_round(tmp_path: Path, tiny_federation: Callable) -> None:
    tiny_federation(tmp_path, names="ABCD", kind=hostile_sites(huge, {1}), num_rounds=1).run()
    (record,) = rounds(tmp_path)
    assert list(record["failed"]) == ["B"] and "the median of the round" in record["failed"]["B"]
    assert set(record["update_norm"]) == {"A", "C", "D"}


def test_bound_of_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path: Path, tiny_federation: Callable) -> None:
    """Of three sites the measure is what was accepted before, which a new process knows from the state alone."""
    tiny_federation(tmp_path, num_rounds=1).run()
    tiny_federation(tmp_path, num_rounds=3, resume=True, kind=hostile_sites(huge, {2})).run()
    assert "max_norm_ratio" in rounds(tmp_path)[1]["failed"]["B"]


@pytest.mark.parametrize("in_memory", [None, 1], ids=["all in memory", "one at a time"])
def test_a_state_that_no_site_can_train_from_is_given_up_for_the_one_before(
    in_memory: int | None, whole: Path, tmp_path: Path, tiny_federation: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    """Round 2 is ruined, no site can train in round 3; round 2 is done again, and the run is as if nothing had been."""
    options = {**UNBOUNDED, "pool_options": {"resident_sites": in_memory}}
    tiny_federation(tmp_path, kind=hostile_sites(Once(), {2}), **options).run()
    assert "going on after round 1" in caplog.text
    assert "going on after round 1" in (tmp_path / "run.json").read_text()
    assert same_run(whole, tmp_path)
    assert [record["round"] for record in rounds(tmp_path)] == [1, 2, 3]


def test_a_ruined_run_heals_when_it_is_resumed(whole: Path, tmp_path: Path, tiny_federation: Callable) -> None:
    """The process ended with the ruined round committed; a later one goes back by itself."""
    tiny_federation(tmp_path, num_rounds=2, kind=hostile_sites(huge, {2}), **UNBOUNDED).run()
    tiny_federation(tmp_path, resume=True, **UNBOUNDED).run()
    assert same_run(whole, tmp_path)


def test_a_site_that_ruins_every_attempt_ends_the_run_with_the_way_back(
    whole: Path, tmp_path: Path, tiny_federation: Callable
) -> None:
    engine = tiny_federation(tmp_path, kind=hostile_sites(huge, {2}), **UNBOUNDED)
    with pytest.raises(FederationError, match=r"round 3: 0 of 3 .*--resume True, or go back with --resume_round 1\."):
        engine.run()
    tiny_federation(tmp_path, resume_round=1, **UNBOUNDED).run()
    assert same_run(whole, tmp_path)


def test_failures_of_another_kind_cost_no_round(tmp_path: Path, tiny_federation: Callable) -> None:
    """Sites whose disks are gone cannot train either, but the state is not to blame."""

    class Gone(LocalPool):
        def train(self, name: str, message: ExchangeObject) -> ExchangeObject:
            if self._round == 3:
                raise OSError("no disk")
            return super().train(name, message)

    with pytest.raises(FederationError, match=r"round 3: 0 of 3 .*no disk"):
        tiny_federation(tmp_path, kind=Gone).run()
    assert torch.load(tmp_path / "federation.pt", weights_only=True)["round"] == 2


class Busy(LocalPool):
    """Site B makes ten times the steps."""

    def open(self, name: str) -> Any:
        site = super().open(name)
        site.local_steps = 20 if name == "B" else None
        return site


@pytest.mark.parametrize("fraction", [1.0, 0.3])
@pytest.mark.parametrize("names", ["ABC", "ABCDEFGHIJKLMN"])
def test_no_honest_site_is_refused(names: str, fraction: float, tmp_path: Path, tiny_federation: Callable) -> None:
    tiny_federation(tmp_path, names=names, fraction=fraction, kind=Busy, num_rounds=8).run()
    assert not any(record["failed"] for record in rounds(tmp_path))


class Poisoned(Wire):
    """Site B's first update of round 2 is on its way turned into what no site can train from."""

    spoil = Once()

    def wait(self, site: str) -> Reply:
        asked = [request for request in self.sent if request.site == site][-1]
        reply = super().wait(site)
        if site == "B" and asked.kind == "train" and asked.round == 2 and reply.message is not None:
            self.spoil(reply.message)
        return reply


def test_sites_elsewhere_go_back_with_the_server(whole: Path, tmp_path: Path, tiny_federation: Callable) -> None:
    """Their own states of the round that is given up are not trained on."""
    plain = tiny_federation(tmp_path / "server")
    plain.close()
    plan = plain.sites.plan
    wire = Poisoned({name: SiteService(replace(plan, output_dir=tmp_path / name), name) for name in plan.names})
    options = {"key_metric": "mse", "key_metric_mode": "min"}
    pool = RemotePool(replace(plan, guard=UpdateValidator(max_norm_ratio=None)), wire)
    Federation(pool, WeightedMean(), 3, **options).run()
    close(wire)
    assert wire.spoil.done
    assert "going on after round 1" in (tmp_path / "server" / "run.json").read_text()
    expected, found = final(whole), final(tmp_path / "server")
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert (tmp_path / "server" / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
