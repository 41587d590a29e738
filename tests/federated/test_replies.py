# SPDX-License-Identifier: Apache-2.0
"""What a site answers, by accident or on purpose: one bad answer costs that answer, never the run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.federation import Federation
from fedmonai.federated.messages import Reply, Request, weights_message
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.remote_pool import RemotePool
from fedmonai.federated.run_log import SiteError
from fedmonai.federated.validation import validated_reply
from fedmonai.methods.averaging import WeightedMean

WEIGHTS = {"a": torch.ones(2, 2), "b": torch.tensor(3)}
STRUCTURE = {"a": [[2, 2], "float32"], "b": [[], "int64"]}
BIG = 10**5000


def found(metrics: Any = None, **other: Any) -> dict[str, Any]:
    return {
        "model": "global",
        "split": "val",
        "round": 1,
        "metrics": {"psnr": 30.0} if metrics is None else metrics,
        "num_cases": 5,
    } | (other)


class Made:
    """A transport with sites that answer at once; ``spoil`` alters what site B says."""

    def __init__(self, spoil: Callable[[Request, Reply], Any] | None = None) -> None:
        self.spoil = spoil
        self.replies: dict[str, Any] = {}

    def send(self, request: Request) -> None:
        reply = getattr(self, f"_{request.kind}")(request)
        reply.facts["state_round"] = request.round if request.kind == "train" else request.facts["state_round"]
        if self.spoil and request.site == "B":
            reply = self.spoil(request, reply) or reply
        self.replies[request.site] = reply

    def wait(self, site: str) -> Reply:
        return self.replies.pop(site)

    def _join(self, request: Request) -> Reply:
        return Reply(weights_message(WEIGHTS), {"structure": dict(STRUCTURE), "private": [], "num_samples": 4})

    def _train(self, request: Request) -> Reply:
        counts = {"num_samples": 4, "num_steps": 2, "num_batches": 2, "loss": 0.5, "train_psnr": 20.0}
        weights: dict[str, Tensor] = {key: tensor.clone() for key, tensor in WEIGHTS.items()}
        return Reply(weights_message(weights, round=request.round, **counts))

    def _validate(self, request: Request) -> Reply:
        value = 30.0 + request.round
        return Reply(None, {"found": [found({"psnr": value}, round=request.round)], "ended": None})

    def _test(self, request: Request) -> Reply:
        rounds = (0, request.round)
        return Reply(None, {"found": [found({"psnr": 1.0}, split="test", round=n) for n in rounds], "ended": None})


def run(spoil: Callable[[Request, Reply], Any] | None, out: Path, rounds: int = 2) -> list[dict[str, Any]]:
    sites = RemotePool(SitePlan(str(out), {"A": {}, "B": {}}, out / "run"), Made(spoil))
    Federation(sites, WeightedMean(), rounds).run()
    return [json.loads(line) for line in (out / "run" / "rounds.jsonl").read_text().splitlines()]


def rows(out: Path) -> list[str]:
    return [line for line in (out / "run" / "metrics.csv").read_text().splitlines() if ",B," in line]


def facts(kind: str, **spoilt: Any) -> Callable[[Request, Reply], None]:
    def spoil(request: Request, reply: Reply) -> None:
        if request.kind == kind and request.round < 2:
            reply.facts.update(spoilt)

    return spoil


def statistics(**spoilt: Any) -> Callable[[Request, Reply], None]:
    def spoil(request: Request, reply: Reply) -> None:
        if request.kind == "train" and request.round == 1:
            assert reply.message is not None
            reply.message.statistics.update(spoilt)

    return spoil


def instead(kind: str, made: Any) -> Callable[[Request, Reply], Any]:
    return lambda request, reply: made if request.kind == kind and request.round < 2 else None


def test_good_answers_lose_nothing(tmp_path: Path) -> None:
    first, second = run(None, tmp_path)
    assert first["failed"] == second["failed"] == {} and first["notes"] == []
    assert second["best_metric"] == 32.0 and first["train_metrics"] == {"psnr": {"A": 20.0, "B": 20.0}}
    assert len(rows(tmp_path)) == 2 * 3 + 2


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (facts("train", state_round="x"), "state_round is 'x', not a whole number"),
        (facts("train", state_round=7), "state_round is 7, not a whole number from 0 to 1"),
        (facts("train", notes=5), "notes is 5, not a list"),
        (facts("train", seconds="x"), "seconds is 'x', not a number"),
        (facts("train", seconds=-1.0), "seconds is -1"),
        (facts("train", seconds=math.nan), "seconds is nan"),
        (facts("train", seconds=BIG), "too large a number"),
        (facts("train", needs=["weights"]), "which the request did not leave out"),
        (facts("train", notes=[5]), "a note is 5, not a text"),
        (instead("train", Reply(facts=None)), "it is Reply with NoneType"),  # type: ignore[arg-type]
        (instead("train", "no reply"), "it is str with NoneType"),
        (instead("train", Reply({"a": 1})), "its message is dict"),  # type: ignore[arg-type]
        (instead("train", Reply(error=5)), "error is 5, not a text"),  # type: ignore[arg-type]
        (instead("train", Reply()), "holds no update"),
        (statistics(num_samples=BIG), "num_samples is a number of"),
        (statistics(num_samples=10**300), "num_samples is a number of"),
        (statistics(num_samples="4"), "num_samples is '4', not a positive whole number"),
        (statistics(loss=1e308), "the training loss is 1e+308, not a finite number up to 1e+100"),
        (statistics(num_batches=BIG), "num_batches is a number of"),
        (statistics(round=True), "belongs to round True, not to 1"),
        (statistics(train_psnr="x"), "train_psnr is 'x', not a number"),
        (statistics(**{"train_a\n": 1.0}), "a statistic has the name 'train_a\\n'"),
        (statistics(privacy_epsilon=1.0), "name privacy_epsilon, but not privacy_clip_norm"),
        (
            statistics(
                **{f"privacy_{n}": -1.0 for n in ("epsilon", "delta", "noise_multiplier", "clip_norm", "seeded")}
            ),
            "privacy_epsilon is -1.0; it cannot be",
        ),
    ],
)
def test_bad_answer_to_a_turn_leaves_the_site_out(spoil: Any, reason: str, tmp_path: Path) -> None:
    first, second = run(spoil, tmp_path)
    assert first["completed"] == ["A"] and reason in first["failed"]["B"]
    assert second["completed"] == ["A", "B"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (facts("validate", state_round="x"), "state_round is 'x'"),
        (facts("validate", found=5), "found is 5"),
        (instead("validate", Reply()), "found is missing"),
        (facts("validate", found=[5]), "an evaluation is 5"),
        (facts("validate", found=[found()] * 101), "101 evaluations"),
        (facts("validate", found=[found(cases={})]), "an evaluation is a dict"),
        (facts("validate", found=[found([1])]), "the metrics of model 'global' are a list"),
        (facts("validate", found=[found({"psnr": "high"})]), "metric 'psnr' of model 'global' is 'high', not a number"),
        (facts("validate", found=[found({"psnr": True})]), "is True, not a number"),
        (facts("validate", found=[found({"psnr": BIG})]), "is a number of 16610 bits, too large"),
        (facts("validate", found=[found({"a\nb": 1.0})]), "the name of a metric is 'a b'; give"),
        (facts("validate", found=[found({5: 1.0})]), "the name of a metric is 5; give"),
        (facts("validate", found=[found(model="a\n1,B,x")]), "the name of a model is 'a 1,B,x'; give"),
        (
            facts("validate", found=[found(model="zero_filled")]),
            "evaluates 'zero_filled' on 'val' in round 1, which was",
        ),
        (facts("validate", found=[found(split="test")]), "'test' in round 1, which was not asked for"),
        (facts("validate", found=[found(round=77)]), "in round 77, which was not asked for"),
        (facts("validate", found=[found(), found()]), "evaluates 'global' in round 1 twice"),
        (facts("validate", ended=["x"]), "ended is a list, not a text"),
    ],
)
def test_bad_validation_is_a_note(spoil: Any, reason: str, tmp_path: Path) -> None:
    first, second = run(spoil, tmp_path)
    assert first["completed"] == ["A", "B"]
    (note,) = first["notes"]
    assert note.startswith("validation at site 'B' failed: ") and reason in note
    assert second["notes"] == [] and second["best_metric"] == 32.0
    assert not [row for row in rows(tmp_path) if ",val," in row and row.startswith("1,")]


def test_reason_of_a_site_becomes_one_line(tmp_path: Path) -> None:
    first, _ = run(facts("validate", ended="out of\x1b memory\nat case 5"), tmp_path)
    assert first["notes"] == ["validation at site 'B' failed: out of  memory at case 5"]
    assert "1,B,global,val,psnr,31.0" in rows(tmp_path)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e308])
def test_metric_that_is_no_number_is_left_out_and_never_best(value: float, tmp_path: Path) -> None:
    first, second = run(facts("validate", found=[found({"psnr": value, "ssim": 0.5})]), tmp_path)
    (note,) = first["notes"]
    assert note == f"site 'B': metric 'psnr' of model 'global' is {value:g} and is left out"
    assert first["best_metric"] == 31.0 and second["best_metric"] == 32.0 and second["best_round"] == 2
    assert [row for row in rows(tmp_path) if row.startswith("1,") and ",val," in row] == ["1,B,global,val,ssim,0.5"]
    first, _ = run(statistics(train_psnr=value), tmp_path / "other")
    assert first["completed"] == ["A", "B"] and first["train_metrics"] == {"psnr": {"A": 20.0}}
    assert "the training metric 'train_psnr' is" in first["notes"][0]


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        ({"state_round": "x"}, "state_round is 'x'"),
        ({"found": [found(round=1)]}, "'val' in round 1, which was not asked for"),
        ({"found": [found(split="test", round=7)]}, "in round 7, which was not asked for"),
        ({"found": [found(split="test", model="zero_filled", round=1)]}, "in round 1, which was not asked for"),
    ],
)
def test_bad_final_test_is_a_note(spoilt: dict[str, Any], reason: str, tmp_path: Path) -> None:
    def spoil(request: Request, reply: Reply) -> None:
        if request.kind == "test":
            reply.facts.update(spoilt)

    run(spoil, tmp_path)
    notes = json.loads((tmp_path / "run" / "run.json").read_text())["notes"]
    assert any(note.startswith("test at site 'B' failed: ") and reason in note for note in notes)
    assert not [row for row in rows(tmp_path) if ",test," in row]


def joins() -> Iterator[Any]:
    for spoilt, reason in (
        ({"state_round": "x"}, "state_round is 'x'"),
        ({"notes": 5}, "notes is 5"),
        ({"structure": 5}, "structure is 5"),
        ({"structure": {}}, "a network without tensors"),
        ({"structure": {**STRUCTURE, "a": [[-1], "float32"]}}, "a length of 'a' is -1"),
        ({"structure": {**STRUCTURE, "a": [[1 << 40, 1 << 40], "float32"]}}, "the tensor 'a' has the shape"),
        ({"structure": {**STRUCTURE, "a": [[2, 2], "load"]}}, "type 'load', which torch does not have"),
        ({"structure": {**STRUCTURE, "a": 5}}, "'a' is described as 5"),
        ({"structure": {**STRUCTURE, "a\n": [[], "float32"]}}, "the name of a tensor is 'a'; give"),
        ({"private": None}, "private is None"),
        ({"private": ["a\x1b[31m"]}, "the name of a private tensor is 'a"),
    ):
        yield pytest.param(facts("join", **spoilt), reason, id=reason)
    yield pytest.param(lambda q, r: Reply() if q.kind == "join" else None, "structure is missing", id="no facts")


@pytest.mark.parametrize(("spoil", "reason"), joins())
def test_bad_answer_at_the_join_names_the_site(spoil: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="site 'B' cannot take part: the reply cannot be used: ") as caught:
        run(spoil, tmp_path)
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "rounds.jsonl").exists()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (None, "sends other weights than it describes: 2 tensors are missing"),
        (weights_message({**WEIGHTS, "a": torch.ones(3)}), "sends other weights than it describes: 'a' has shape"),
        (weights_message({**WEIGHTS, "a": torch.full((2, 2), math.nan)}), "holds NaN"),
    ],
)
def test_weights_to_start_from_must_be_those_described(message: Any, reason: str, tmp_path: Path) -> None:
    made = Made(lambda q, r: setattr(r, "message", message) if q.facts.get("with_weights") else None)
    sites = RemotePool(SitePlan(str(tmp_path), {"B": {}}, tmp_path / "run"), made)
    with pytest.raises(ConfigError, match=reason):
        Federation(sites, WeightedMean(), 1).run()


def test_notes_of_sites_and_transport_are_written_down(tmp_path: Path) -> None:
    transport = Made(facts("train", notes=["state\x07 lost\nagain", *["more"] * 100]))
    transport.notes = ["somebody else knocked"]  # type: ignore[attr-defined]
    sites = RemotePool(SitePlan(str(tmp_path), {"B": {}}, tmp_path / "run"), transport)
    Federation(sites, WeightedMean(), 1).run()
    (line,) = [json.loads(text) for text in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert line["notes"][:2] == ["somebody else knocked", "site 'B': state  lost again"]
    assert len(line["notes"]) == 51


def test_nothing_unknown_is_passed_on() -> None:
    request = Request("join", "B", 0, None, {"state_round": 0})
    reply = Reply(None, {"structure": STRUCTURE, "private": [], "patients": ["x"]}, None)
    checked, notes = validated_reply(reply, request)
    assert set(checked.facts) == {"structure", "private", "notes"} and notes == []
    with pytest.raises(SiteError, match="cannot be used"):
        validated_reply(Reply(None, {"structure": STRUCTURE}, None), request)
