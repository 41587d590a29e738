# SPDX-License-Identifier: Apache-2.0
"""A deployed site of the tiny bundle, and a server's requests to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loopback import over_the_wire
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.federated.messages import Reply, Request, pack_reply, weights_message
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.policy import SitePolicy
from fedmonai.federated.service import SiteService

TINY = Path(__file__).parents[2] / "benchmarks" / "tiny_bundle"
DEPLOYED = SitePolicy(own_machine=False, min_cases=5, attachments=())
#: values of nobody else, so that a trained tensor cannot be like one that the server knows
SAMPLES = [{"image": [0.1 * i, 0.3, 0.7, 0.2 * i], "label": [0.4, 0.1 * i]} for i in range(6)]
FACTS: dict[str, Any] = {"key_metric": "mse", "mode": "min", "best": None}


def plan_of(out: Path, bundle: Path = TINY, names: str = "A", **options: Any) -> SitePlan:
    options = {"policy": DEPLOYED, "local": {"samples": SAMPLES}, **options}
    return SitePlan(str(bundle), {name: {} for name in names}, out, **options)


def service(out: Path, **options: Any) -> SiteService:
    return SiteService(plan_of(out, **options), "A")


def ask(site: SiteService, kind: str, number: int, message: ExchangeObject | None = None, **facts: Any) -> Reply:
    return site.answer(Request(kind, "A", number, message, {**FACTS, "state_round": number, **facts}))


def start(site: SiteService) -> dict[str, Tensor]:
    reply = ask(site, "join", 0, with_weights=True)
    assert reply.error is None and reply.message is not None, reply.error
    return dict(reply.message.weights)


def trained(site: SiteService, weights: dict[str, Tensor], number: int = 1) -> Reply:
    return ask(site, "train", number, weights_message(weights, round=number), state_round=number - 1)


def tensors_in(reply: Reply) -> dict[str, Tensor]:
    return over_the_wire(*pack_reply(reply))[0]
