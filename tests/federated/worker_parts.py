# SPDX-License-Identifier: Apache-2.0
"""Parts of a tiny federation whose sites may live in worker processes, which import them by name."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.federated.federation import Federation
from fedmonai.federated.numeric_flags import numeric_flags
from fedmonai.federated.protocol import RoundContext, SiteHandler
from fedmonai.methods.averaging import WeightedMean

TINY = Path(__file__).parents[2] / "benchmarks" / "tiny_bundle"
#: of what is in the overlay of a tiny bundle's sites
PARTS = {
    "faults": {},
    "notes": None,
    "train::handlers": [
        {"_target_": "worker_parts.Faults", "faults": "@faults", "notes": "@notes"},
        {"_target_": "worker_parts.Echo"},
    ],
}


class Faults(SiteHandler):
    """Ends a local training: ``faults`` says in which round and how, ``{2: "raise"}``.

    ``notes`` is a folder for ``<site>.json``: in which process, with which settings it trains.
    """

    def __init__(self, faults: Mapping[int, str], notes: str | None = None) -> None:
        self.faults, self.notes = dict(faults), notes

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._note)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _note(self, engine: Any) -> None:
        context = RoundContext.of(engine)
        if self.notes is not None and context is not None:
            found: dict[str, Any] = {"process": os.getpid(), "device": repr(engine.state.device)}
            found |= {"threads": torch.get_num_threads(), "flags": numeric_flags()}
            Path(self.notes, f"{context.site}.json").write_text(json.dumps(found))

    def __call__(self, engine: Engine) -> None:
        context = RoundContext.of(engine)
        how = self.faults.get(context.round) if context is not None else None
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "diverge":
            raise FloatingPointError("the loss is nan")
        elif how == "hang":
            time.sleep(600)
        elif how is not None:
            raise RuntimeError("scanner on fire")


class Echo(SiteHandler):
    """Sends a number up and moves the weights by the one that comes down, so that either is seen in the result."""

    def attach(self, engine: Engine) -> None:
        self.sent = torch.zeros(1)
        engine.add_event_handler(Events.STARTED, self._move)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._note)

    def _move(self, engine: Any) -> None:
        received = RoundContext.of(engine).received.get("echo", {})  # type: ignore[union-attr]
        with torch.no_grad():
            for weight in engine.network.parameters():
                weight.add_(sum((tensor.sum() for tensor in received.values()), torch.zeros(())), alpha=0.01)

    def _note(self, engine: Any) -> None:
        self.sent = torch.tensor([engine.state.output["loss"].item()])

    def observe(self, engine: Any) -> None:
        self.sent = torch.rand(1)

    def contribute(self, engine: Any) -> dict[str, dict[str, Tensor]]:
        return {"echo": {"number": self.sent}}


class EchoMean(WeightedMean):
    """A mean that sends every site what all have sent, and asks one of them before each round."""

    attachments_up = attachments_down = ("echo",)
    observers_train = True

    def __init__(self, observer: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.observers = (observer,)
        self.echo: dict[str, Tensor] = {}

    def observed(self, round_number: int, updates: Mapping[str, ExchangeObject]) -> None:
        self._keep(updates)

    def configure_round(self, round_number: int, sites: Iterable[str]) -> dict[str, ExchangeObject]:
        messages = super().configure_round(round_number, sites)
        for message in messages.values():
            message["echo"] = self.echo
        return messages

    def aggregate(self, round_number: int, updates: Mapping[str, ExchangeObject]) -> None:
        super().aggregate(round_number, updates)
        self._keep(updates)

    def _keep(self, updates: Mapping[str, ExchangeObject]) -> None:
        self.echo |= {site: update["echo"]["number"] for site, update in updates.items()}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "echo": self.echo}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.echo = dict(state["echo"])


def tiny_bundle(folder: Path) -> Path:
    """The tiny bundle with an overlay that puts these parts into its sites."""
    shutil.copytree(TINY, folder)
    (folder / "configs" / "parts.json").write_text(json.dumps(PARTS))
    return folder


def tiny_config(bundle: Path, out: Path, names: Iterable[str] = "ABCD", **ids: Any) -> dict[str, Any]:
    """The config of a federation of tiny sites that differ in the offset of their labels and keep their last layer."""
    sites = {name: {"offset": 0.1 * index} for index, name in enumerate(names)}
    config: dict[str, Any] = {
        "bundle_root": str(bundle),
        "output_dir": str(out),
        "num_rounds": 4,
        "key_metric": "mse",
        "key_metric_mode": "min",
        "local_keys": [r"output\."],
        "local": {"overlay": "configs/parts.json"},
        "sites": sites,
        "strategy": {"_target_": "worker_parts.EchoMean", "observer": "A"},
        "federation": {"_target_": "fedmonai.bundle.federation.build_federation"},
    }
    return {**config, **ids}


def tiny(bundle: Path, out: Path, faults: Mapping[str, Mapping[int, str]] | None = None, **ids: Any) -> Federation:
    """A federation of such a config; ``faults`` are by site and round."""
    parser = ConfigParser(tiny_config(bundle, out))
    parser.update(ids)
    for name, of_site in (faults or {}).items():
        parser[f"sites::{name}::faults"] = dict(of_site)
    federation: Federation = parser.get_parsed_content("federation")
    return federation
