# SPDX-License-Identifier: Apache-2.0
"""A server that asks for what it may not have: weights without noise, single cases, texts of errors."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deployed_site import DEPLOYED, FACTS, TINY, ask, plan_of, service, start, tensors_in, trained
from loopback import Wire, close
from monai.fl.utils.exchange_object import ExchangeObject
from run_results import rounds
from torch import Tensor

from fedmonai.federated.federation import Federation
from fedmonai.federated.messages import KINDS, Request, weights_message
from fedmonai.federated.policy import SitePolicy
from fedmonai.federated.remote_pool import RemotePool
from fedmonai.federated.run_log import RoundRecord, SiteError
from fedmonai.federated.service import SiteService
from fedmonai.federated.validation import UpdateValidator
from fedmonai.methods.averaging import WeightedMean

FACTORS = [1.0] * 20 + [0.5] * 4 + [1e7, float("nan")]


def nothing_learned(message: ExchangeObject, extra: dict) -> ExchangeObject:
    """The strongest filter there is: the site sends back what it was sent."""
    message.weights = {key: extra["received"][key].clone() for key in message.weights or {}}
    return message


def few_cases(folder: Path, cases: int) -> Path:
    """The tiny bundle with fewer cases to validate on than to train on."""
    some = {"_target_": "monai.data.Dataset", "data": f"$@samples[:{cases}]", "transform": "@transform"}
    validate = json.loads((TINY / "configs" / "train.json").read_text())["validate"]
    validate["dataloader"]["dataset"] = "@some"
    return other_bundle(folder, some=some, validate=validate)


def other_bundle(folder: Path, **content: Any) -> Path:
    """The tiny bundle with other ids."""
    config = json.loads((TINY / "configs" / "train.json").read_text()) | content
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "train.json").write_text(json.dumps(config))
    return folder


def randomly(draw: random.Random, start: dict[str, Tensor], number: int, held: int) -> Request:
    """Any request in any form, in whatever order a hostile server finds."""
    weights = {key: tensor * draw.choice(FACTORS) for key, tensor in start.items()}
    message = weights_message(weights, round=number, observe=draw.choice([0, 0, 0, 1]))
    if draw.random() < 0.3:
        message[draw.choice(["initial", "target_latents"])] = dict(start)
    facts = {**FACTS, "state_round": draw.choice([held, held, held, held, 0, number, -1, 99])}
    facts["with_weights"] = draw.random() < 0.7
    facts |= {"best": draw.choice([None, [0.0, number]]), "kept": draw.choice([None, [0, number], []])}
    kind = draw.choice([*KINDS, *KINDS, *KINDS, "train", "get_weights", "_rewind"])
    return Request(kind, "A", number, draw.choice([message] * 5 + [None]), facts)


@pytest.mark.parametrize("seed", range(3))
def test_no_request_gets_a_tensor_that_knows_the_data(seed: int, tmp_path: Path) -> None:
    """Whatever tensor comes, the server could have had it without the site: the seed's, or one that it sent."""
    site = service(tmp_path / "secret", exchange_filters=[nothing_learned])
    first = start(site)
    known: dict[str, list[Tensor]] = {key: [tensor] for key, tensor in first.items()}
    draw, seen, turns, held = random.Random(seed), dict.fromkeys(KINDS, 0), 0, 0
    for _ in range(60):
        request = randomly(draw, first, 1 + turns % 3, held)
        for key, tensor in (request.message.weights if request.message is not None else {}).items():
            known[key].append(tensor)
        if "A" in site.sites._resident:  # some local trainings end in the middle of an epoch
            site.sites.open("A").monitor.timeout = draw.choice([None, None, None, 1e-9])
        reply = site.answer(request)
        held = reply.facts.get("state_round", 0)
        for key, tensor in tensors_in(reply).items():
            assert any(torch.equal(tensor, one) for one in known[key]), (request.kind, request.facts, key)
        assert request.kind in ("join", "train") or not tensors_in(reply)
        text = json.dumps([reply.facts, reply.error])
        assert "secret" not in text and "Error" not in text and "Traceback" not in text, text
        if reply.error is None:
            seen[request.kind] += 1
            turns += request.kind == "train"
    site.close()
    assert min(seen.values()) > 0, seen  # every kind was also answered


def test_a_second_join_tells_nothing_of_the_training(tmp_path: Path) -> None:
    site = service(tmp_path)
    weights = start(site)
    assert tensors_in(trained(site, weights))  # the update itself
    second = ask(site, "join", 1, with_weights=True)
    assert second.error is not None and "before its first training only" in second.error and not tensors_in(second)
    assert ask(site, "join", 1).error is None
    site.sites.open("A").monitor.timeout = 1e-9
    failed = trained(site, weights, 2)
    assert failed.error is not None and "code time" in failed.error
    again = ask(site, "join", 0, with_weights=True)
    assert again.message is not None and all(torch.equal(again.message.weights[key], weights[key]) for key in weights)
    site.close()


def spoilt(change: Callable[[ExchangeObject], None]) -> Callable[..., ExchangeObject]:
    def apply(message: ExchangeObject, extra: dict) -> ExchangeObject:
        change(message)
        return message

    return apply


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.weights.update(more=torch.zeros(2)), "'more', which is not shared in this form"),
        (lambda m: m.weights.update({k: t.double() for k, t in m.weights.items()}), "not shared in this form"),
        (lambda m: m.weights.update({k: t[None] for k, t in m.weights.items()}), "not shared in this form"),
        (lambda m: m.update(images={"x": torch.zeros(2)}), "the attachment 'images' is not among those"),
        (lambda m: m.statistics.update(patient=17), "'patient' is no count, loss or metric"),
        (lambda m: m.statistics.update(train_x="Mueller"), "'train_x' is no count, loss or metric"),
        (lambda m: m.statistics.update({"train_/data/Mueller": 1.0}), "is no count, loss or metric"),
        (lambda m: m.statistics.update({f"train_{i}": 0.5 for i in range(1000)}), "metrics of training are more"),
    ],
)
def test_an_update_in_another_form_stays(change: Any, reason: str, tmp_path: Path) -> None:
    site = service(tmp_path, exchange_filters=[spoilt(change)])
    reply = trained(site, start(site))
    assert reply.error is not None and reason in reply.error and not tensors_in(reply)
    site.close()


@pytest.mark.parametrize(
    ("declared", "admitted", "leaves"),
    [((), None, False), (("images",), (), False), ((), ("images",), False), (("images",), ("images",), True)],
)
def test_attachments_are_declared_and_admitted(
    declared: Sequence[str], admitted: Any, leaves: bool, tmp_path: Path
) -> None:
    filters = [spoilt(lambda message: message.update(images={"x": torch.zeros(2)}))]
    policy = replace(DEPLOYED, attachments=admitted)
    site = service(tmp_path, exchange_filters=filters, attachments_up=declared, policy=policy)
    assert (trained(site, start(site)).error is None) is leaves
    site.close()


def test_errors_leave_as_codes_and_stay_as_texts(tmp_path: Path) -> None:
    def unreadable(message: ExchangeObject, extra: dict) -> ExchangeObject:
        raise FileNotFoundError(2, "No such file", str(tmp_path / "Mueller.nii"))

    site = service(tmp_path, exchange_filters=[unreadable])
    told = trained(site, start(site)).error
    assert told is not None and "Mueller" not in told and str(tmp_path) not in told and "\n" not in told
    code, reference = told.partition("(code ")[2].split(", reference ")
    text = (tmp_path / "sites" / "A" / "errors.log").read_text()
    assert f"--- reference {reference.split()[0]}, code {code}" in text
    assert "Mueller.nii" in text and "Traceback" in text
    site.close()

    def diverged(message: ExchangeObject, extra: dict) -> ExchangeObject:
        raise FloatingPointError("the training loss is inf")

    site = service(tmp_path / "inf", exchange_filters=[diverged])
    record = RoundRecord(1, ["A"])
    record.fail("A", SiteError(str(trained(site, start(site)).error)))
    assert record.all_diverged()  # the server has to know: from there no site can start
    site.close()
    full = service(tmp_path / "own", local={"samples": 5}, policy=SitePolicy())
    assert "RuntimeError: Failed to instantiate" in str(ask(full, "join", 0).error)
    full.close()


def test_refusals_tell_no_distance_to_what_a_site_has_learned(tmp_path: Path) -> None:
    """Asked again and again with a bound that the job chose, they would: one bit each, one weight after another."""
    site = service(tmp_path, guard=UpdateValidator(max_norm=1e-6))
    weights = start(site)
    assert trained(site, weights).error is None
    reply = ask(site, "validate", 1, weights_message({key: tensor + 5.0 for key, tensor in weights.items()}))
    assert reply.error is None and reply.facts["ended"] is None
    site.close()


def test_names_and_shapes_are_those_of_the_network_alone(tmp_path: Path) -> None:
    """A job whose network is as wide as its data tell has another one than its ``network_def``."""
    wide = {"_target_": "monai.networks.nets.FullyConnectedNet", "in_channels": 4, "out_channels": 2}
    bundle = other_bundle(tmp_path / "bundle", network={**wide, "hidden_channels": ["$len(@train::dataset)"]})
    site = service(tmp_path / "out", bundle=bundle)
    for weights in (False, True):
        reply = ask(site, "join", 0, with_weights=weights)
        assert reply.error is not None and "not the one of its network_def" in reply.error
        assert "structure" not in reply.facts and not tensors_in(reply)
    site.close()


def test_sites_that_train_while_they_are_built_start_from_the_weights_of_the_server(tmp_path: Path) -> None:
    """Their own trained ones stay, a note says so, and weights that the server has been given are used."""
    bundle = other_bundle(tmp_path / "bundle", initialize=["$@train::trainer.run()"])
    clean = service(tmp_path / "clean")
    drawn = start(clean)
    clean.close()
    given = {key: torch.full_like(tensor, 0.5) for key, tensor in drawn.items()}
    torch.save(given, tmp_path / "given.pt")
    for name, init_ckpt, expected in (("seed", None, drawn), ("file", tmp_path / "given.pt", given)):
        _, engine = run(tmp_path / name, bundle, few="AB", engine={"init_ckpt": init_ckpt})
        first = torch.load(engine.checkpoint.folder.model("initial"), weights_only=True)
        assert all(torch.equal(first[key], tensor) for key, tensor in expected.items())
        said = rounds(tmp_path / name / "server")[0]["notes"]
        notes = [note for note in said if "other weights than network_def draws" in note]
        assert [note.split("'")[1] for note in notes] == ["A", "B"], said


def run(
    out: Path, bundle: Path, names: str = "AB", few: str = "", engine: Any = None, **options: Any
) -> tuple[Wire, Federation]:
    """A federation whose sites hold back metrics of fewer than 5 cases; those in ``few`` have ``bundle``."""
    plans = {n: plan_of(out / n, bundle if n in few else TINY, names, **options) for n in names}
    wire = Wire({name: SiteService(plan, name) for name, plan in plans.items()})
    pool = RemotePool(plan_of(out / "server", names=names), wire)
    federation = Federation(pool, WeightedMean(), 2, key_metric="mse", key_metric_mode="min", **(engine or {}))
    federation.run()
    close(wire)
    return wire, federation


@pytest.mark.parametrize(("batch", "leaves"), [(2, False), (5, True)])
def test_metrics_of_training_are_of_batches_with_enough_samples(batch: int, leaves: bool, tmp_path: Path) -> None:
    """A handler may take a metric of the first batch of an epoch."""
    loader = {"_target_": "monai.data.DataLoader", "dataset": "@train::dataset", "batch_size": batch, "shuffle": True}
    train = json.loads((TINY / "configs" / "train.json").read_text())["train"] | {"dataloader": loader}
    bundle = other_bundle(tmp_path / "bundle", train=train)
    site = service(
        tmp_path, bundle=bundle, exchange_filters=[spoilt(lambda message: message.statistics.update(train_x=0.5))]
    )
    reply = trained(site, start(site))
    assert reply.error is None and reply.message is not None
    assert ("train_x" in reply.message.statistics) is leaves
    assert ("metrics of training stay" in str(reply.facts.get("notes"))) is not leaves
    site.close()


def test_few_cases_leave_as_their_number(tmp_path: Path) -> None:
    _, engine = run(tmp_path, few_cases(tmp_path / "few", 3), few="B")
    first = rounds(tmp_path / "server")[0]
    note = "validation at site 'B': it reports no metrics of its 3 cases (min_cases of the site) and has no part"
    assert any(note in one for one in first["notes"]), first["notes"]
    lines = (tmp_path / "server" / "metrics.csv").read_text().splitlines()
    assert any(",A,global,val," in line for line in lines) and any(",A,global,test," in line for line in lines)
    assert not any(",B,global,val," in line or ",B,global,test," in line for line in lines)
    assert ",B,global,val,mse," in (tmp_path / "B" / "sites" / "B" / "metrics.csv").read_text()
    assert set(engine.checkpoint.best.values) == {"A"}
    assert any("test at site 'B': it reports no metrics" in note for note in engine.checkpoint.notes)


def test_without_any_metric_the_last_round_is_kept(tmp_path: Path) -> None:
    _, engine = run(tmp_path, few_cases(tmp_path / "few", 3), few="AB")
    assert engine.checkpoint.best.round() is None and len(rounds(tmp_path / "server")) == 2
    tested = (tmp_path / "A" / "sites" / "A" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in tested if ",test," in line] == ["0", "2"]


@pytest.mark.parametrize(
    ("policy", "options", "reason"),
    [
        ({"min_cases": 7}, {}, "min_cases of this site is 7, its local training would have 6"),
        ({"min_steps": 4}, {}, "min_steps of this site is 4, its local training would have 3"),
        ({"min_steps": 4}, {"local_steps": 1}, "min_steps of this site is 4, its local training would have 1"),
        ({}, {"local_steps": 2}, "min_cases of this site is 5, its local training would have 4"),  # the loss of four
        ({"min_batch": 3}, {}, "min_batch of this site is 3, its local training would have 2"),
        ({"max_epsilon": 1.0}, {}, "the job adds no noise"),
    ],
)
def test_what_a_site_does_not_take_part_in(policy: Any, options: Any, reason: str, tmp_path: Path) -> None:
    site = service(tmp_path, policy=replace(DEPLOYED, ledgers=(tmp_path, "*"), **policy), **options)
    weights = start(service(tmp_path / "other")) if "max_epsilon" not in policy else start(site)
    reply = trained(site, weights)
    assert reply.error is not None and reason in reply.error and "\n" not in reply.error and not tensors_in(reply)
    assert site.sites.open("A").trainer.state.iteration == 0
    site.close()
