# SPDX-License-Identifier: Apache-2.0
"""bfloat16 on the wire: half the bytes, the same in process as deployed to the bit, small changes are not lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from loopback import Wire, close
from monai.fl.utils.exchange_object import ExchangeObject
from run_results import final, load, rounds, same, site_state, tensor_bytes
from two_sites import BUNDLE, IDS, PRIVATE, specs
from two_sites import data as data

from fedmonai.errors import ConfigError
from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.messages import Reply, Request, pack_request, weights_message
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.remote_pool import RemotePool
from fedmonai.federated.service import SiteService
from fedmonai.federated.wire_form import WireForm
from fedmonai.methods.averaging import WeightedMean

HALF, FULL = WireForm("bfloat16"), WireForm()


def plan(data: Path, out: Path, **options: Any) -> SitePlan:
    ids = {**IDS, "reset_optimizer": False}
    return SitePlan(BUNDLE, specs(data), out, local=ids, **{"wire_dtype": "bfloat16", **options})


def here(data: Path, out: Path, rounds: int = 3, local_keys: tuple = PRIVATE, **options: Any) -> Federation:
    engine = Federation(LocalPool(plan(data, out, **options)), WeightedMean(local_keys=local_keys), rounds)
    engine.run()
    return engine


def elsewhere(data: Path, out: Path, local_keys: tuple = PRIVATE, **options: Any) -> Wire:
    services = {n: SiteService(plan(data, out / n, local_keys=local_keys, **options), n) for n in "AB"}
    wire = Wire(services)
    pool = RemotePool(plan(data, out / "server", **options), wire)
    Federation(pool, WeightedMean(local_keys=local_keys), 3).run()
    close(wire)
    return wire


@pytest.mark.parametrize("local_keys", [(), PRIVATE], ids=["all shared", "decoder private"])
def test_what_is_simulated_is_what_is_deployed(data: Path, tmp_path: Path, local_keys: tuple) -> None:
    here(data, tmp_path / "here", local_keys=local_keys)
    wire = elsewhere(data, tmp_path, local_keys)
    assert same(final(tmp_path / "here"), final(tmp_path / "server"))
    assert (tmp_path / "here" / "metrics.csv").read_text() == (tmp_path / "server" / "metrics.csv").read_text()
    assert tensor_bytes(tmp_path / "here") == tensor_bytes(tmp_path / "server")
    for name in "AB":
        states = [site_state(root, name) for root in (tmp_path / "here", tmp_path / name)]
        assert same(states[0]["private"], states[1]["private"])
        models = [root / "models" / f"{name}.pt" for root in (tmp_path / "here", tmp_path / name)]
        assert not local_keys or same(load(models[0]), load(models[1]))
    assert all(tensor.dtype == torch.float32 for tensor in final(tmp_path / "server").values())
    tensors = [t for r in wire.sent for t in pack_request(r)[0].values()]
    assert tensors and all(tensor.dtype == torch.int16 for tensor in tensors)  # bfloat16 as numpy can carry it


def test_half_the_bytes_and_another_result(data: Path, tmp_path: Path) -> None:
    here(data, tmp_path / "half")
    here(data, tmp_path / "full", wire_dtype="float32")
    half, full = tensor_bytes(tmp_path / "half"), tensor_bytes(tmp_path / "full")
    assert [{where: 2 * size for where, size in line.items()} for line in half] == full
    assert not same(final(tmp_path / "half"), final(tmp_path / "full"))
    assert '"wire_dtype": "bfloat16"' in (tmp_path / "half" / "run.json").read_text()


def test_filters_come_before_the_rounding_and_the_check_after_it(data: Path, tmp_path: Path) -> None:
    seen: list[ExchangeObject] = []

    def half_of_it(message: ExchangeObject, extra: dict) -> ExchangeObject:
        assert all(t.dtype == torch.float32 for t in (*message.weights.values(), *extra["received"].values()))
        message.weights = {k: extra["received"][k] + (t - extra["received"][k]) / 2 for k, t in message.weights.items()}
        seen.append(message)
        return message

    engine = Federation(LocalPool(plan(data, tmp_path, exchange_filters=[half_of_it])), WeightedMean(), 1)
    engine.prepare()
    before = {key: tensor.clone() for key, tensor in engine.strategy.global_weights.items()}
    checked: list[Any] = []
    check = engine.guard.check_update

    def spied(message: ExchangeObject, reference: Any, *rest: Any) -> float:
        checked.append(
            ({k: t.clone() for k, t in message.weights.items()}, {k: t.clone() for k, t in reference.items()})
        )
        return check(message, reference, *rest)

    engine.guard.check_update = spied  # type: ignore[method-assign]
    engine.run()
    for message, (update, reference) in zip(seen, checked, strict=True):
        assert same(reference, before)
        for key, tensor in message.weights.items():
            received = before[key].to(torch.bfloat16).float()
            assert torch.equal(update[key], before[key] + (tensor - received).to(torch.bfloat16).float())


def test_update_that_overflows_or_is_of_another_type_is_refused(data: Path, tmp_path: Path) -> None:
    def spoil(change: Any) -> list[dict[str, Any]]:
        services = {n: SiteService(plan(data, tmp_path / change.__name__ / n), n) for n in "AB"}
        answer = services["B"].answer

        def spoilt(request: Request) -> Reply:
            reply = answer(request)
            if request.kind == "train" and reply.message is not None:
                key = next(iter(reply.message.weights))
                reply.message.weights[key] = change(reply.message.weights[key])
            return reply

        services["B"].answer = spoilt  # type: ignore[method-assign]
        wire = Wire(services)
        pool = RemotePool(plan(data, tmp_path / change.__name__ / "server"), wire)
        Federation(pool, WeightedMean(), 1).run()
        close(wire)
        return rounds(tmp_path / change.__name__ / "server")

    def infinite(tensor: torch.Tensor) -> torch.Tensor:
        return torch.full_like(tensor, 3e38)

    def short(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.reshape(-1)[:1]

    def half(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(torch.float16)

    reasons = {infinite: "more than max_abs", short: "has shape (1,)", half: "has type torch.float16"}
    for change, reason in reasons.items():
        assert reason in spoil(change)[0]["failed"]["B"]


def test_small_changes_add_up() -> None:
    """A thousand rounds of a step that bfloat16 cannot show beside the weight; values rounded both ways never move."""
    weight, step = {"a": torch.tensor([1.0])}, 1e-4
    naive = weight["a"].clone()
    for _ in range(1000):
        received = HALF.received(HALF.down(weight), weight)
        update = HALF.full(HALF.up(weights_message({"a": received["a"] - step}), received), weight)
        weight = dict(update.weights)
        naive = (naive.to(torch.bfloat16).float() - step).to(torch.bfloat16).float()
    assert naive.item() == 1.0
    assert weight["a"].item() == pytest.approx(1 - 1000 * step, rel=1e-3)  # steps are exact to 2^-9


def test_only_float32_weights_are_rounded_and_attachments_never() -> None:
    weights = {
        "w": torch.tensor([1.001]),
        "double": torch.tensor([1.001], dtype=torch.float64),
        "half": torch.tensor([1.001], dtype=torch.float16),
        "count": torch.tensor(12345),
        "k": torch.tensor([1.001 + 1j]),
    }
    message = weights_message(weights, round=1)
    message["bank"] = {"w": torch.tensor([1.001])}
    done: dict = {}
    sent = {name: HALF.message_down(message, done) for name in "AB"}
    assert sent["A"].weights["w"] is sent["B"].weights["w"]  # rounded once
    assert sent["A"]["bank"] is message["bank"] and sent["A"].statistics == {"round": 1}
    for key in set(weights) - {"w"}:
        assert sent["A"].weights[key] is weights[key]
    received = HALF.received(sent["A"].weights, weights)
    assert received["w"].item() == 1.0 and received["w"].dtype == torch.float32
    update = HALF.up(weights_message({**weights, "count": torch.tensor(12346)}), received)
    assert {key for key, tensor in update.weights.items() if tensor.dtype == torch.bfloat16} == {"w"}
    assert HALF.full(update, weights).weights["count"].item() == 12346
    assert message.weights["w"].item() == weights["w"].item()
    bf16 = {"w": torch.tensor([1.5], dtype=torch.bfloat16)}  # a network of bfloat16 keeps its own values
    assert same(HALF.full(HALF.up(weights_message(bf16), bf16), bf16).weights, bf16)


def test_float32_leaves_everything_alone() -> None:
    message = weights_message({"w": torch.ones(1)})
    assert FULL.message_down(message) is message
    assert FULL.up(message, {}) is message and FULL.full(message, {}) is message


def test_running_variance_stays_a_variance() -> None:
    weights = {"bn.running_var": torch.tensor([0.9985])}
    received = HALF.received(HALF.down(weights), weights)
    update = HALF.up(weights_message({"bn.running_var": torch.tensor([1e-5])}), received)
    assert float(weights["bn.running_var"] + update.weights["bn.running_var"].float()) < 0
    assert HALF.full(update, weights).weights["bn.running_var"].item() == 0.0


def test_other_type_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wire_dtype is 'float16'; choose one of float32, bfloat16"):
        plan(data, tmp_path, wire_dtype="float16")
