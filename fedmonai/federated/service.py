# SPDX-License-Identifier: Apache-2.0
"""Service of a site in a deployed federation: replies to requests, keeps private state and cases on its own disk."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.checkpoint import BestModelTracker
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.messages import KINDS, FormatError, Reply, Request, attachments_of
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.received import ReceivedSets
from fedmonai.federated.release import Joined, Needed, Release, Trained
from fedmonai.federated.run_log import RunFolder, save_atomic
from fedmonai.federated.site import SiteAlgo
from fedmonai.federated.site_evaluation import (
    ModelEvaluation,
    SiteEvaluation,
    evaluate_site,
    final_test,
    validation,
    write_site_evaluation,
)
from fedmonai.federated.start_weights import start_weights
from fedmonai.io import load_checked

__all__ = ["SiteService"]

logger = logging.getLogger(__name__)


class SiteService:
    """Service of one site: replies to the requests of :class:`~fedmonai.federated.remote_pool.RemotePool`.

    The state after a local training is on disk before its update leaves. A request names the round whose state the
    server has committed for this site; if the site is ahead (its reply was lost, the server went back), it returns to
    that state, so that a deployed run equals the in-process one to the bit. A damaged or missing file costs the rounds
    since the one before it, and the reply says so.

    Weights that the server has sent before come as their digest; a site that no longer holds them only asks for them.

    Args:
        plan: what the sites of the federation are built from; only ``name`` is.
        name: the site that is served.
        after_test: done when this site's final test is done and its tables are written.

    Raises:
        ConfigError: when ``name`` is no site of the federation, or its folder is in use by another process.
    """

    def __init__(self, plan: SitePlan, name: str, after_test: Callable[[], object] | None = None) -> None:
        plan.refuse_unknown(name)
        self.plan, self.name, self.after_test = plan, name, after_test
        self.sites = LocalPool(plan)
        self.release = Release(plan, name)
        self.folder = RunFolder(plan.folder(name))
        self.received = ReceivedSets(plan.folder(name) / "received")
        self._held: int | None = None
        self._start: dict[str, Tensor] | None = None
        self._notes: list[str] = []

    def close(self) -> None:
        """Release the site's folder."""
        self.folder.close()

    def answer(self, request: Request) -> Reply:
        """The reply to a request; an exception becomes a reply without message, with the reason."""
        self._notes = []
        started = time.perf_counter()
        outcome: Any
        try:
            if request.kind not in KINDS or request.site != self.name:
                raise ConfigError(f"a request '{request.kind}' for site '{request.site}' came to site '{self.name}'.")
            if self._start is None:  # before anything of the site's config has run in this process
                self._start = start_weights(self.plan, self.name)
            missing = self.received.complete(request)
            outcome = Needed(missing) if missing else self._outcome(request)
        except Exception as error:  # whatever a site's own code raises, the server is told and continues
            outcome = error
        return self.release.reply(request, outcome, self._held, self._notes, started)

    def _outcome(self, request: Request) -> Any:
        if request.digests:
            self.received.keep(request)
        site = self._site(int(request.facts["state_round"]))
        if request.facts.get("kept") is not None:
            self._remove_states({int(number) for number in request.facts["kept"]})
        return getattr(self, f"_{request.kind}")(site, request)

    def _site(self, wanted: int) -> SiteAlgo:
        """The site in its state after round ``wanted`` (0: as it was built)."""
        if wanted < 0:
            raise ConfigError(f"a request is for the state after round {wanted}; the first round is 1.")
        if self._held == wanted:
            return self.sites.open(self.name)
        if wanted == 0:
            self.sites.evict(self.name)
            site = self.sites.open(self.name)
            save_atomic(site.complete_model({}, "global"), self.release.initial)
            if not _equal(self._start or {}, site.reference):
                self._notes.append(
                    "its network was built with other weights than network_def draws from the seed; the federation "
                    "starts from those of the seed, or from the server's init_ckpt"
                )
        else:
            wanted = self._rewind(wanted)
            site = self.sites.open(self.name)
        self.folder.truncate(wanted)
        self._held = wanted
        return site

    def _rewind(self, wanted: int) -> int:
        found = (re.fullmatch(r"round_(\d+)\.pt", path.name) for path in self.folder.path.glob("round_*.pt"))
        there = {int(match[1]) for match in found if match}
        for number in sorted((n for n in there | {wanted} if n <= wanted), reverse=True):
            self.sites.evict(self.name)
            self.sites.state_rounds[self.name] = number
            try:
                self.sites.open(self.name)
            except FormatError:  # not damaged: an older or a fresh state would discard the site's own without need
                raise
            except ConfigError as error:
                self._notes.append(f"the state after round {number} cannot be used ({self.release.reason(error)})")
                continue
            if number != wanted:
                self._notes.append(f"continuing from the state after round {number}")
            return number
        self.sites.evict(self.name)
        self._notes.append("continuing with a fresh private state")
        return 0

    def _remove_states(self, kept: set[int]) -> None:
        wanted = {self.plan.state_file(self.name, number) for number in kept}
        for path in self.folder.path.glob("round_*.pt"):
            if path not in wanted:
                path.unlink()

    def _join(self, site: SiteAlgo, request: Request) -> Joined:
        assert self._start is not None  # noqa: S101 (for mypy; it is drawn with the first request)
        return Joined(site, self._start, bool(request.facts.get("with_weights")))

    def _train(self, site: SiteAlgo, request: Request) -> Trained:
        self.plan.policy.check_site(site)
        self.plan.policy.check_budget(site, 1)
        self.sites.begin_round(request.round, {})
        site.train(_message(request))
        if site.observing:  # neither weights to send nor a state to keep
            return Trained(site)
        self._held = None  # until it is on disk, the run cannot continue from the state in memory
        self.sites.mark_changed(self.name)
        self.sites.save_states(request.round)
        self.sites.write_states()
        self._held = request.round
        return Trained(site)

    def _validate(self, site: SiteAlgo, request: Request) -> SiteEvaluation:
        best, key_metric = self._best(request), str(request.facts["key_metric"])
        own_model = self.plan.own_model(self.name)
        return self._evaluated(validation(site, _message(request), request.round, best, key_metric, own_model))

    def _test(self, site: SiteAlgo, request: Request) -> SiteEvaluation:
        message = _message(request)
        chosen, initial = (site.decoded(one) for one in (message.weights, attachments_of(message).get("initial")))
        site.guard.check_weights(chosen, site.reference)
        site.guard.check_weights(initial, site.reference)
        first: dict[str, Tensor] = {**load_checked(self.release.initial), **initial}
        number = self._best(request).round(self.name)
        own_model = None if number is None else (self.plan.own_model(self.name), number)
        result = self._evaluated(final_test(site, first, (chosen, request.round), own_model))
        if self.after_test is not None:
            try:
                self.after_test()
            except (ConfigError, OSError) as error:  # only the site's own files are missing: no reason to fail the test
                logger.warning("after the final test: %s", error)
        return result

    def _best(self, request: Request) -> BestModelTracker:
        best = BestModelTracker(str(request.facts["mode"]))
        if request.facts.get("best") is not None:
            value, number = request.facts["best"]
            best.records[self.name] = (float(value), int(number))
        return best

    def _evaluated(self, steps: Iterator[ModelEvaluation]) -> SiteEvaluation:
        """The result of an evaluation; its cases go to this site's tables."""
        result = evaluate_site(self.name, steps, self.release.reason)
        write_site_evaluation(self.folder, result)
        return result


def _equal(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    pairs = ((weights.get(key), tensor.cpu()) for key, tensor in others.items())
    return all(one is not None and one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs)


def _message(request: Request) -> ExchangeObject:
    if request.message is None:
        raise ConfigError(f"a request '{request.kind}' came without weights.")
    return request.message
