# SPDX-License-Identifier: Apache-2.0
"""A federation over a transport is the in-process one to the bit and survives what a transport and a disk do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from loopback import close
from run_results import Interrupt, final, rounds, same, site_state
from two_sites import BUNDLE, IDS, PRIVATE, in_process, remote, specs
from two_sites import data as data

from fedmonai.errors import ConfigError, FederationError
from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.messages import Reply, Request, pack, unpack, weights_message
from fedmonai.federated.plan import SitePlan
from fedmonai.methods.averaging import WeightedMean


@pytest.mark.parametrize("local_keys", [(), PRIVATE], ids=["all shared", "decoder private"])
def test_remote_equals_in_process_to_the_bit(data: Path, tmp_path: Path, local_keys: tuple) -> None:
    ids = {"reset_optimizer": False}
    expected = in_process(data, tmp_path / "here", local_keys, ids)
    engine, wire = remote(data, tmp_path, local_keys, ids)
    engine.run()
    close(wire)
    assert same(final(expected), final(tmp_path / "server"))
    assert (tmp_path / "server" / "metrics.csv").read_text() == (expected / "metrics.csv").read_text()
    for name in "AB":
        assert same(site_state(expected, name)["private"], site_state(tmp_path / name, name)["private"])
    # single cases stay where they are, and private keys never travel
    assert not (tmp_path / "server" / "cases.csv").exists()
    whole = (expected / "cases.csv").read_text().splitlines()
    own = [(tmp_path / n / "sites" / n / "cases.csv").read_text().splitlines()[1:] for n in "AB"]
    assert sorted(whole[1:]) == sorted(own[0] + own[1])
    travelled = {key for request in wire.sent for key in pack(request.message)[0]}
    assert bool(local_keys) != any(key.startswith("decoder.") for key in travelled)


def test_resume_takes_sites_back_to_the_servers_commit(data: Path, tmp_path: Path) -> None:
    """The server dies after round 2 is trained and before it is committed; sites are ahead and go back."""
    ids = {"reset_optimizer": False}
    expected = in_process(data, tmp_path / "here", PRIVATE, ids)
    engine, wire = remote(data, tmp_path, PRIVATE, ids)
    Interrupt().attach(engine)
    with pytest.raises(KeyboardInterrupt):
        engine.run()
    assert wire.services["A"]._held == 2
    close(wire)
    engine, wire = remote(data, tmp_path, PRIVATE, ids, resume=True)
    engine.run()
    assert {(r.kind, r.facts["state_round"]) for r in wire.sent if r.round == 2} == {("train", 1), ("validate", 2)}
    close(wire)
    assert same(final(expected), final(tmp_path / "server"))
    assert (tmp_path / "server" / "metrics.csv").read_text() == (expected / "metrics.csv").read_text()
    for name in "AB":
        assert same(site_state(expected, name)["private"], site_state(tmp_path / name, name)["private"])


def test_lost_answer_leaves_the_site_out_and_its_turn_is_undone(data: Path, tmp_path: Path) -> None:
    engine, wire = remote(data, tmp_path, PRIVATE, {"reset_optimizer": False})
    wire.lose = {("train", 2, "B")}
    engine.run()
    first, second, third = rounds(tmp_path / "server")
    assert second["failed"] == {"B": "no answer"}
    assert second["completed"] == ["A"] and third["completed"] == ["A", "B"]
    assert [r.facts["state_round"] for r in wire.sent if r.kind == "train" and r.site == "B"] == [0, 1, 1]
    # a silent site is not asked to validate in the same round
    assert [r.round for r in wire.sent if r.kind == "validate" and r.site == "B"] == [1, 3]
    trainer = wire.services["B"].sites.open("B").trainer
    assert trainer.state.iteration == 2 * 2  # two turns of two batches: the lost one is not in it
    close(wire)
    assert first["notes"] == []


def test_error_at_a_site_is_named_with_its_reason(data: Path, tmp_path: Path) -> None:
    engine, wire = remote(data, tmp_path, num_rounds=2)
    engine.prepare()

    def fail(trainer: Any) -> None:
        if trainer.state.round_context.round == 1:
            raise RuntimeError("scanner on fire")

    wire.services["B"].sites.open("B").trainer.add_event_handler(Events.ITERATION_COMPLETED, fail)
    engine.run()
    close(wire)
    first, second = rounds(tmp_path / "server")
    assert first["failed"] == {"B": "RuntimeError: scanner on fire"}
    assert second["completed"] == ["A", "B"]


def test_damaged_state_of_a_site_costs_rounds_and_is_said(data: Path, tmp_path: Path) -> None:
    engine, wire = remote(data, tmp_path, PRIVATE, num_rounds=2)
    engine.run()
    close(wire)
    newest = tmp_path / "A" / "sites" / "A" / "round_0002.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    engine, wire = remote(data, tmp_path, PRIVATE, num_rounds=3, resume=True)
    engine.run()
    close(wire)
    notes = " ".join(rounds(tmp_path / "server")[2]["notes"])
    assert "site 'A': the state after round 2 cannot be used" in notes
    assert "site 'A': continuing from the state after round 1" in notes


def test_site_that_does_not_join_is_noted_and_a_mistake_ends_the_run(data: Path, tmp_path: Path) -> None:
    engine, wire = remote(data, tmp_path, num_rounds=1)
    wire.deaf = {"A"}
    engine.run()
    close(wire)
    (line,) = rounds(tmp_path / "server")
    assert line["failed"] == {"A": "no answer"}
    assert "site 'A' did not join: no answer" in line["notes"]
    engine, wire = remote(data, tmp_path / "other", ids={"dataset_dir": "/nowhere"})
    wire.services["B"].plan.sites["B"]["dataset_dir"] = "/nowhere/at/all"
    with pytest.raises(ConfigError, match=r"site 'B' cannot take part: ConfigError: .*nowhere"):
        engine.run()
    close(wire)


def test_nobody_there(data: Path, tmp_path: Path) -> None:
    engine, wire = remote(data, tmp_path)
    wire.deaf = {"A", "B"}
    with pytest.raises(ConfigError, match="none of the sites A, B replies"):
        engine.run()
    close(wire)


def test_hostile_update_is_refused_over_the_wire(data: Path, tmp_path: Path) -> None:
    engine, wire = remote(data, tmp_path, num_rounds=1)
    answer = wire.services["B"].answer

    def poisoned(request: Request) -> Reply:
        reply = answer(request)
        if request.kind == "train" and reply.message is not None:
            next(iter(reply.message.weights.values())).fill_(float("nan"))
        return reply

    wire.services["B"].answer = poisoned  # type: ignore[method-assign]
    engine.run()
    close(wire)
    (line,) = rounds(tmp_path / "server")
    assert "holds NaN" in line["failed"]["B"]
    assert all(torch.isfinite(t).all() for t in final(tmp_path / "server").values())


def test_a_refused_turn_is_undone_at_its_site(data: Path, tmp_path: Path) -> None:
    engine, wire = remote(data, tmp_path, PRIVATE, {"reset_optimizer": False})
    answer = wire.services["B"].answer

    def poisoned(request: Request) -> Reply:
        reply = answer(request)
        if (request.kind, request.round) == ("train", 2) and reply.message is not None:
            next(iter(reply.message.weights.values())).fill_(float("nan"))
        return reply

    wire.services["B"].answer = poisoned  # type: ignore[method-assign]
    engine.run()
    close(wire)
    assert [line["completed"] for line in rounds(tmp_path / "server")] == [["A", "B"], ["A"], ["A", "B"]]
    assert [r.facts["state_round"] for r in wire.sent if r.kind == "validate" and r.site == "B"] == [1, 1, 3]
    lost, other = remote(data, tmp_path / "lost", PRIVATE, {"reset_optimizer": False})
    other.lose = {("train", 2, "B")}
    lost.run()
    close(other)
    states = [site_state(root / "B", "B")["private"] for root in (tmp_path, tmp_path / "lost")]
    assert states[0] and same(*states)
    assert same(final(tmp_path / "server"), final(tmp_path / "lost" / "server"))


def test_too_few_answers_stop_the_run(data: Path, tmp_path: Path) -> None:
    engine, wire = remote(data, tmp_path, min_sites=2)
    wire.lose = {("train", 2, "B")}
    with pytest.raises(FederationError, match=r"round 2: 1 of 2 .*B: no answer"):
        engine.run()
    close(wire)


def test_wire_form_keeps_messages_whole() -> None:
    message = weights_message({"a.weight": torch.rand(2, 3), "a.count": torch.tensor(4)}, round=2, num_samples=7)
    message["previous_encoders"] = {"A.a.weight": torch.rand(2, 3)}
    tensors, plain = pack(message)
    assert set(tensors) == {"a.weight", "a.count", "previous_encoders::A.a.weight"}
    back = unpack(tensors, json.loads(json.dumps(plain)))
    assert back is not None and same(back.weights, message.weights)
    assert torch.equal(back["previous_encoders"]["A.a.weight"], message["previous_encoders"]["A.a.weight"])
    assert back.statistics == {"round": 2, "num_samples": 7}
    del tensors["a.weight"]  # a filter on the way
    without = unpack(tensors, plain)
    assert without is not None and set(without.weights) == {"a.count"}
    assert unpack(*pack(None)) is None


def test_given_weights_are_evaluated_at_sites_elsewhere(data: Path, tmp_path: Path) -> None:
    start = in_process(data, tmp_path / "here") / "models" / "model_final.pt"
    sites = LocalPool(SitePlan(BUNDLE, specs(data), tmp_path / "evaluated", local=IDS))
    Federation(sites, WeightedMean(), 0, init_ckpt=str(start)).run()
    engine, wire = remote(data, tmp_path, num_rounds=0, init_ckpt=str(start))
    engine.run()
    close(wire)
    table = (tmp_path / "server" / "metrics.csv").read_text()
    assert table == (tmp_path / "evaluated" / "metrics.csv").read_text() and ",test," in table
