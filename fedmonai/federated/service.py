# SPDX-License-Identifier: Apache-2.0
"""Service of a site in a deployed federation: replies to requests, keeps private state and cases on its own disk."""

from __future__ import annotations

import logging
from typing import Any

from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.checkpoint import BestModelTracker
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.messages import KINDS, FormatError, Reply, Request, attachments_of, weights_message
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.run_log import RunFolder, reason_of, save_atomic
from fedmonai.federated.site import SiteAlgo
from fedmonai.federated.site_evaluation import (
    ModelEvaluation,
    SiteEvaluation,
    evaluate_site,
    final_test,
    validation,
    write_site_evaluation,
)
from fedmonai.io import load_checked

__all__ = ["SiteService"]

logger = logging.getLogger(__name__)


class SiteService:
    """Replies to the requests of :class:`~fedmonai.federated.remote_pool.RemotePool` with one site.

    The state after a local training is on disk before its update leaves. A request names the round whose state the
    server has committed for this site; if the site is ahead (its reply was lost, the server went back), it returns to
    that state, so that a deployed run is the in-process one to the bit. A damaged or missing file costs the rounds
    since the one before it, and the reply says so.

    Args:
        plan: what the sites of the federation are built from; only ``name`` is.
        name: the site that lives here.

    Raises:
        ConfigError: when ``name`` is no site of the federation, or its folder is in use by another process.
    """

    def __init__(self, plan: SitePlan, name: str) -> None:
        plan.refuse_unknown(name)
        self.plan, self.name = plan, name
        self.sites = LocalPool(plan)
        self.folder = RunFolder(plan.folder(name))
        self._held: int | None = None
        self._notes: list[str] = []

    def close(self) -> None:
        """Release the site's folder."""
        self.folder.close()

    def answer(self, request: Request) -> Reply:
        """The reply to a request; an exception becomes a reply without message that holds the reason."""
        self._notes = []
        reply = Reply()
        try:
            if request.kind not in KINDS or request.site != self.name:
                raise ConfigError(f"a request '{request.kind}' for site '{request.site}' came to site '{self.name}'.")
            site = self._site(int(request.facts["state_round"]))
            if request.facts.get("kept") is not None:
                self._remove_states({int(number) for number in request.facts["kept"]})
            getattr(self, f"_{request.kind}")(site, request, reply)
        except Exception as error:  # whatever a site's own code raises, the server gets to know and goes on
            logger.exception("round %d: %s failed", request.round, request.kind)
            reply.message, reply.error = None, reason_of(error)
        if self._held is not None:
            reply.facts["state_round"] = self._held
        if self._notes:
            reply.facts["notes"] = self._notes
        return reply

    def _site(self, wanted: int) -> SiteAlgo:
        """The site in its state after round ``wanted`` (0: as it was built)."""
        if self._held == wanted:
            return self.sites.open(self.name)
        if wanted == 0:
            self.sites.evict(self.name)
            site = self.sites.open(self.name)
            save_atomic(site.complete_model({}, "global"), self._initial)
        else:
            wanted = self._rewind(wanted)
            site = self.sites.open(self.name)
        self.folder.truncate(wanted)
        self._held = wanted
        return site

    def _rewind(self, wanted: int) -> int:
        there = {int(p.stem.rpartition("_")[2]) for p in self.folder.path.glob("round_*.pt")}
        for number in sorted((n for n in there | {wanted} if n <= wanted), reverse=True):
            self.sites.evict(self.name)
            self.sites.state_rounds[self.name] = number
            try:
                self.sites.open(self.name)
            except FormatError:  # nothing is damaged: an older or a fresh state would lose the site's own for nothing
                raise
            except ConfigError as error:
                self._notes.append(f"the state after round {number} cannot be used ({error})")
                continue
            if number != wanted:
                self._notes.append(f"continuing from the state after round {number}")
            return number
        self.sites.evict(self.name)
        self._notes.append("continuing with a fresh private state")
        return 0

    @property
    def _initial(self) -> Any:
        return self.folder.path / "initial.pt"

    def _remove_states(self, kept: set[int]) -> None:
        wanted = {self.plan.state_file(self.name, number) for number in kept}
        for path in self.folder.path.glob("round_*.pt"):
            if path not in wanted:
                path.unlink()

    def _join(self, site: SiteAlgo, request: Request, reply: Reply) -> None:
        described = {key: [list(t.shape), str(t.dtype).removeprefix("torch.")] for key, t in site.reference.items()}
        reply.facts |= {"structure": described, "private": list(site.private), "num_samples": site.num_samples}
        if request.facts.get("with_weights"):
            whole = site.complete_model({}, "global")
            reply.message = weights_message({key: whole[key] for key in site.reference})

    def _train(self, site: SiteAlgo, request: Request, reply: Reply) -> None:
        self.sites.begin_round(request.round, {})
        site.train(_message(request))
        if site.observing:
            reply.message = site.get_weights()
            return
        self._held = None  # until it is on disk, the state in memory is nothing to continue from
        self.sites.mark_changed(self.name)
        self.sites.save_states(request.round)
        self._held = request.round
        reply.message = site.get_weights()

    def _validate(self, site: SiteAlgo, request: Request, reply: Reply) -> None:
        best, key_metric = self._best(request), str(request.facts["key_metric"])
        own_model = self.plan.own_model(self.name)
        steps = validation(site, _message(request), request.round, best, key_metric, own_model)
        self._report(evaluate_site(self.name, steps), reply)

    def _test(self, site: SiteAlgo, request: Request, reply: Reply) -> None:
        message = _message(request)
        initial = attachments_of(message).get("initial", {})
        site.guard.check_weights(message.weights, site.reference)
        site.guard.check_weights(initial, site.reference)
        first: dict[str, Tensor] = {**load_checked(self._initial), **initial}
        number = self._best(request).round(self.name)
        own_model = None if number is None else (self.plan.own_model(self.name), number)
        steps = final_test(site, first, (message.weights or {}, request.round), own_model)
        self._report(evaluate_site(self.name, steps), reply)

    def _best(self, request: Request) -> BestModelTracker:
        best = BestModelTracker(str(request.facts["mode"]))
        if request.facts.get("best") is not None:
            value, number = request.facts["best"]
            best.records[self.name] = (float(value), int(number))
        return best

    def _report(self, result: SiteEvaluation, reply: Reply) -> None:
        """Cases go to this site's tables; the server gets the means."""
        write_site_evaluation(self.folder, result)
        reply.facts["found"] = [_without_cases(one) for one in result.found]
        reply.facts["ended"] = result.error


def _message(request: Request) -> ExchangeObject:
    if request.message is None:
        raise ConfigError(f"a request '{request.kind}' came without weights.")
    return request.message


def _without_cases(one: ModelEvaluation) -> dict[str, Any]:
    metrics = {name: float(value) for name, value in one.metrics.items()}
    return {"model": one.model, "split": one.split, "round": one.round, "metrics": metrics}
