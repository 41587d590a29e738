# SPDX-License-Identifier: Apache-2.0
"""Worker process: holds some sites of a federation and handles the calls of the process that started it."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import torch
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import FederationError, root_user_error
from fedmonai.federated.checkpoint import BestModelTracker
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.messages import attachments_of, pack, unpack
from fedmonai.federated.numeric_flags import set_numeric_flags
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.run_log import reason_of
from fedmonai.federated.shared_tensors import SharedTensors
from fedmonai.federated.site_evaluation import SiteEvaluation

__all__ = ["GRACE", "SiteWorker", "serve"]

#: seconds that a process has to end by itself when it is asked to
GRACE = 10.0


class SiteWorker:
    """Holder of the sites of one worker process, in a :class:`~fedmonai.federated.local_pool.LocalPool`.

    Its methods without ``_`` are what :class:`~fedmonai.federated.process_pool.ProcessPool` may call. Arguments and
    results are plain values and messages; tensors are in shared memory.

    Args:
        sites: the pool of this process.
        incoming: tensors that the other process places.
        outgoing: tensors that this process places; they are borrowed until the next round begins.
    """

    def __init__(self, sites: LocalPool, incoming: SharedTensors, outgoing: SharedTensors) -> None:
        self._sites, self._incoming, self._outgoing = sites, incoming, outgoing
        #: views of the incoming tensors of the last batch of calls by their stamps: what is sent to several sites, or
        #: sent again as it was, is one object
        self._batch = -1
        self._views: dict[int, Tensor] = {}
        self._earlier: dict[int, Tensor] = {}

    def handle(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a call; an exception becomes its reason."""
        reply = self._handle(call)
        return {"costs": self._sites.costs.take(), **reply}

    def _handle(self, call: Mapping[str, Any]) -> dict[str, Any]:
        arguments = dict(call["arguments"])
        try:
            if "message" in call:
                arguments["message"] = self._message(call)
            method: Callable[..., dict[str, Any]] = getattr(self, call["method"])
            return method(**arguments)
        except Exception as error:  # whatever a site's own code raises, the other process is told
            return _error(error)

    def _message(self, call: Mapping[str, Any]) -> ExchangeObject:
        if call["batch"] != self._batch:
            self._batch, self._views, self._earlier = call["batch"], {}, self._views
        tensors = {}
        for name, place in call["places"].items():
            stamp = place[-1]
            if stamp not in self._views:
                known = self._earlier.get(stamp)
                self._views[stamp] = self._incoming.view({name: place})[name] if known is None else known
            tensors[name] = self._views[stamp]
        message = unpack(tensors, call["message"])
        return ExchangeObject() if message is None else message

    def _sent(self, message: ExchangeObject) -> dict[str, Any]:
        tensors, plain = pack(message)
        (places,) = self._outgoing.place([tensors])
        return {"message": plain, "places": places}

    def return_to(self, state_rounds: dict[str, int]) -> dict[str, Any]:
        """Continue from these states."""
        self._sites.return_to(state_rounds)
        return {}

    def build(self, site: str) -> dict[str, Any]:
        """Build a site: the form of its shared tensors, the names of its private ones."""
        shared = self._sites.structure(site) or {}
        described = {
            key: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for key, tensor in shared.items()
        }
        return {"shared": described, "private": list(self._sites.open(site).private)}

    def initial_weights(self, site: str) -> dict[str, Any]:
        """The whole state dict that a site starts from."""
        return self._sent(ExchangeObject(weights=self._sites.initial_weights(site)))

    def begin_round(self, number: int) -> dict[str, Any]:
        """Begin a round."""
        self._sites.begin_round(number, {})
        self._outgoing.clear()
        return {}

    def train(self, site: str, message: ExchangeObject) -> dict[str, Any]:
        """Train a site and send its update."""
        return self._sent(self._sites.train(site, message))

    def rollback(self, site: str) -> dict[str, Any]:
        """Discard a local training."""
        self._sites.rollback(site)
        return {}

    def validate(
        self, site: str, message: ExchangeObject, number: int, mode: str, best: list[Any] | None, key_metric: str
    ) -> dict[str, Any]:
        """Evaluate a site on its validation split."""
        (found,) = self._sites.validate({site: message}, number, _tracker(site, mode, best), key_metric)
        return _evaluation(found)

    def test(
        self, site: str, message: ExchangeObject, number: int, mode: str, best: list[Any] | None
    ) -> dict[str, Any]:
        """Make a site's final test; the message holds the chosen weights and, attached, those before training."""
        initial = attachments_of(message).get("initial", {})
        chosen = {site: (message.weights or {}, number)}
        (found,) = self._sites.test(chosen, initial, _tracker(site, mode, best))
        return _evaluation(found)

    def save_states(self, number: int) -> dict[str, Any]:
        """Write the states of the sites that have changed."""
        state_rounds = self._sites.save_states(number)
        self._sites.write_states()
        return {"state_rounds": state_rounds}


def _error(error: Exception) -> dict[str, Any]:
    mistake = root_user_error(error)
    kind, text = type(mistake).__name__, str(mistake)
    if mistake is None:
        kind, text = "", "".join(traceback.format_exception(error))
    return {"error": {"reason": reason_of(error), "kind": kind, "text": text}}


def _evaluation(found: SiteEvaluation) -> dict[str, Any]:
    return {"found": [asdict(one) for one in found.found], "ended": found.error}


def _tracker(site: str, mode: str, best: list[Any] | None) -> BestModelTracker:
    tracker = BestModelTracker(mode)
    if best is not None:
        tracker.records[site] = (best[0], best[1])
    return tracker


def serve(descriptors: tuple[int, int, int], build_plan: Callable[[Mapping[str, Any]], SitePlan]) -> None:
    """Serve the process that started this one, until it closes the connection or ends.

    Args:
        descriptors: of the connection, of the memory of incoming tensors and of that of outgoing ones.
        build_plan: makes the plan of the sites from the first thing that comes over the connection.
    """
    link, incoming, outgoing = Connection(descriptors[0]), *map(SharedTensors, descriptors[1:])
    setup = json.loads(link.recv_bytes())
    torch.set_num_threads(setup["threads"])
    set_numeric_flags(setup["flags"])
    form = f"%(asctime)s - worker {setup['worker']} - %(levelname)s - %(message)s"
    logging.basicConfig(level=setup["log_level"], format=form)
    signal.signal(signal.SIGTERM, _end)
    calls: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(link, calls), daemon=True).start()
    try:
        worker = SiteWorker(LocalPool(build_plan(setup), setup["resident_sites"]), incoming, outgoing)
    except Exception as error:
        link.send_bytes(json.dumps({"number": None, **_error(error)}).encode())
        return
    while True:
        call = calls.get()
        _send(link, call, worker.handle(call))


def _send(link: Connection, call: Mapping[str, Any], reply: Mapping[str, Any]) -> None:
    if call["number"] is not None:
        link.send_bytes(json.dumps({"number": call["number"], **reply}).encode())
    elif "error" in reply:  # no caller waits for this reply, but the end of the process is noticed
        raise FederationError(reply["error"]["reason"])


def _read(link: Connection, calls: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Queue the calls; when the other process is gone, end this one, whatever it does."""
    try:
        while True:
            calls.put(json.loads(link.recv_bytes()))
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)


def _end(number: int, _: Any) -> None:
    """Unwind the work in progress, so that unfinished files are removed."""
    signal.signal(number, signal.SIG_DFL)
    logging.disable(logging.CRITICAL)  # engines would log that they end; the first process prints the line
    raise SystemExit(128 + number)
