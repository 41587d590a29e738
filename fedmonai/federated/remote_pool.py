# SPDX-License-Identifier: Apache-2.0
"""Remote pool: the sites of a federation on other machines or in other processes, asked over a transport."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.checkpoint import BestModelTracker
from fedmonai.federated.costs import Costs
from fedmonai.federated.frames import digest_of
from fedmonai.federated.messages import (
    WEIGHTS,
    Reply,
    Request,
    SharedKeys,
    kind_of_training,
    message_bytes,
    pack_request,
    weights_message,
)
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.run_log import SiteError, reason_of
from fedmonai.federated.site_evaluation import ModelEvaluation, SiteEvaluation
from fedmonai.federated.validation import InvalidUpdate, UpdateValidator, dtype_named, validated_reply
from fedmonai.federated.wire_form import Rounded

__all__ = ["RemotePool", "Transport"]

logger = logging.getLogger(__name__)


class Transport(Protocol):
    """Transport of requests and replies, which a runtime provides. A request reaches its own site only.

    It may have a list ``notes`` of what happened to its connections, which the pool records and empties.
    """

    def send(self, request: Request) -> None:
        """Send without waiting; an earlier request to the same site that has no reply is dropped."""

    def wait(self, site: str) -> Reply:
        """The reply to what was sent last.

        Raises:
            SiteError: when no reply came: the site is not connected, has died or took too long.
        """


class RemotePool:
    """Pool of remote sites, as the server sees them; a :class:`~fedmonai.federated.site_pool.SitePool`.

    All sites of a round work at the same time. Private weights, single cases and personal models are on the sites' own
    disks; the server's commit names the round of every site's state, a site goes back to it where it is ahead.

    Weights are sent once: those that a site was sent with ``validate`` after a round are named by their digest in
    ``train`` of the next one, and so are the best ones and those before training in ``test``, if the site was sent
    them. A site keeps what the requests say; one that has lost it asks for it and is sent the whole request. Validation
    and training stay two requests: as one request, the metrics of a round, its handlers and its commit would wait for
    the end of the next round's training, and whoever stops a run early would have trained, and released, one update
    that is not used.

    Args:
        plan: what the sites are built from; here only their names, what is shared and in which form count.
        transport: what carries requests and replies.
        by_digest: name weights that a site holds instead of sending them; a transport that does not copy tensors gains
            nothing from it.
    """

    def __init__(self, plan: SitePlan, transport: Transport, by_digest: bool = True) -> None:
        self.plan, self.transport, self.by_digest = plan, transport, by_digest
        self.state_rounds: dict[str, int] = {}
        self.notes: list[str] = []
        self.costs = Costs()
        self._joined: dict[str, Reply] | None = None
        self._requests: dict[str, Request] = {}
        self._started: dict[str, float] = {}
        self._kept: list[Mapping[str, int]] = []
        self._silent: set[str] = set()
        self._before: dict[str, int] = {}
        self._sets = {name: _KnownSets() for name in plan.names}
        self._best: BestModelTracker | None = None

    def _ask(
        self,
        kind: str,
        name: str,
        number: int,
        message: ExchangeObject | None = None,
        digests: Mapping[str, tuple[int, str]] | None = None,
        **facts: Any,
    ) -> None:
        """Send a request.

        Args:
            kind: what is asked.
            name: the site.
            number: the round.
            message: weights and attachments, in the form of the wire.
            digests: by item of the message, the round after which these weights were the global ones, and their digest.
            facts: plain values.
        """
        state_round = self.state_rounds.get(name, 0)
        facts["state_round"] = state_round
        if self._kept:
            facts["kept"] = sorted({state_round, *(commit[name] for commit in self._kept if name in commit)})
        request = Request(kind, name, number, message, facts)
        if digests:
            best = self._best.round() if self._best is not None else None
            self._sets[name].name_in(request, digests, best)
        self._send(request)

    def _send(self, request: Request) -> None:
        self._requests[request.site] = request  # its reply is checked against it
        sent = {item: size for item, size in _sizes(request.message).items() if item not in request.held}
        sent["facts"] = _length(pack_request(request)[1])
        self.costs.sent(request.site, _kind(request), sent)
        self._started[request.site] = time.perf_counter()
        self.transport.send(request)
        noted: list[str] = getattr(self.transport, "notes", [])
        self._note(*noted)
        noted.clear()

    def _reply(self, name: str) -> Reply:
        """The reply to what was sent last; a site that needs what the request left out is sent the whole of it."""
        reply = self._received(name)
        if "needs" in reply.facts:
            request = self._requests[name]
            self._note(f"site '{name}' no longer held the {' and '.join(reply.facts['needs'])} it was sent before")
            self._sets[name].lost()
            self._send(replace(request, held=[], keep=[]))
            reply = self._received(name)  # nothing was left out, so asking again is no valid reply
        request = self._requests.pop(name)
        if reply.error is not None:
            raise SiteError(reply.error)
        self._sets[name].arrived(request)
        return reply

    def _received(self, name: str) -> Reply:
        request = self._requests[name]
        try:
            reply = self.transport.wait(name)
        except SiteError:
            self._silent.add(name)  # it is not asked again in this round
            raise
        waited = time.perf_counter() - self._started[name]
        reply, left_out = validated_reply(reply, request)
        seconds = min(reply.facts.get("seconds", waited), waited)
        self.costs.worked(name, _kind(request), seconds)
        self.costs.waited(name, _kind(request), waited - seconds)
        statistics = reply.message.statistics if reply.message is not None else None
        facts = {"facts": _length({"facts": reply.facts, "error": reply.error, "statistics": statistics})}
        self.costs.received(name, _kind(request), _sizes(reply.message) | facts)
        if "state_round" in reply.facts:
            self.state_rounds[name] = reply.facts["state_round"]
        self._note(*(f"site '{name}': {note}" for note in [*reply.facts["notes"], *left_out]))
        return reply

    def _note(self, *notes: str) -> None:
        for note in notes:
            self.notes.append(note)
            logger.warning(note)

    def _join(self) -> dict[str, Reply]:
        """Let every site build itself; a mistake at one of them ends the run before the first round."""
        for name in self.plan.names:
            self._ask("join", name, 0)
        joined = {}
        for name in self.plan.names:
            try:
                joined[name] = self._reply(name)
            except SiteError as error:
                if name not in self._silent:
                    raise ConfigError(f"site '{name}' cannot take part: {error}") from error
                self._note(f"site '{name}' did not join: {error}")
        if not joined:
            raise ConfigError(f"none of the sites {', '.join(self.plan.names)} replies: {'; '.join(self.notes)}")
        return joined

    def return_to(self, state_rounds: Mapping[str, int]) -> None:
        """Have the sites go back to these states, each with the next request to it."""
        self.state_rounds = dict(state_rounds)

    def structure(self, name: str) -> Mapping[str, Tensor] | None:
        """Tensors of the keys, shapes and types that a site shares, on the meta device."""
        if self._joined is None:
            self._joined = self._join()
        if name not in self._joined:
            return None
        described = self._joined[name].facts["structure"]
        return {
            key: torch.empty(shape, dtype=dtype_named(kind), device="meta") for key, (shape, kind) in described.items()
        }

    def initial_weights(self, name: str) -> dict[str, Tensor]:
        """The shared weights that a site starts from: all sites draw them from the federation's base seed.

        Private tensors are there by name only, without elements: their values do not travel. A site that has trained
        sends no weights to start from; a run that continues takes them from its commit, so here they are zero.

        Raises:
            ConfigError: when the site does not send them.
        """
        if self.state_rounds.get(name, 0) > 0:
            structure = self.structure(name) or {}
            private = self._joined[name].facts["private"] if self._joined and name in self._joined else []
            zeros = {key: torch.zeros(tensor.shape, dtype=tensor.dtype) for key, tensor in structure.items()}
            return {**{key: torch.empty(0) for key in private}, **zeros}
        self._ask("join", name, 0, with_weights=True)
        try:
            reply = self._reply(name)
        except SiteError as error:
            raise ConfigError(f"site '{name}' does not send the weights to start from: {error}") from error
        shared = dict((reply.message.weights if reply.message is not None else None) or {})
        try:
            UpdateValidator.check_structure(shared, self.structure(name) or {})
        except InvalidUpdate as error:
            raise ConfigError(f"site '{name}' sends other weights than it describes: {error}") from error
        return {**{key: torch.empty(0) for key in reply.facts["private"]}, **shared}

    def shares_all(self) -> bool:
        """Whether the shared weights are a whole network, as the sites say."""
        replies = (self._joined or {}).values()
        return not any(reply.facts["private"] for reply in replies)

    def begin_round(self, round_number: int, messages: Mapping[str, ExchangeObject]) -> None:
        """Send every participant its own message."""
        self._silent = set()
        self._before = {name: self.state_rounds.get(name, 0) for name in messages}
        for name, message, digests in self._in_wire_form(messages, round_number - 1):
            self._ask("train", name, round_number, message, digests)

    def train(self, name: str, message: ExchangeObject) -> ExchangeObject:
        """Wait for the site's update; the message was sent when the round began."""
        update = self._reply(name).message
        if update is None:
            raise SiteError("the reply holds no update")
        return self.plan.wire.full(update, message.weights or {})

    def validate(
        self, messages: Mapping[str, ExchangeObject], number: int, best: BestModelTracker, key_metric: str
    ) -> Iterator[SiteEvaluation]:
        """Let all sites evaluate at the same time. A site that was silent in this round is not asked."""
        self._best = best
        asked = {name: messages[name] for name in self._asked(messages)}
        for name, message, digests in self._in_wire_form(asked, number):
            facts = {"key_metric": key_metric, "mode": best.mode, "best": _record(best, name)}
            self._ask("validate", name, number, message, digests, **facts)
        yield from self._evaluations(messages)

    def _in_wire_form(
        self, messages: Mapping[str, ExchangeObject], number: int
    ) -> Iterator[tuple[str, ExchangeObject, dict[str, tuple[int, str]]]]:
        """Messages as they are sent, with the digests of their weights, which were the global ones after a round."""
        digests = _Digests() if self.by_digest else None
        done: Rounded = {}
        for name, full in messages.items():
            message = self.plan.wire.message_down(full, done)
            weights = message.weights or {}
            yield name, message, {} if digests is None or not weights else {WEIGHTS: (number, digests.of(weights))}

    def test(
        self,
        chosen: Mapping[str, tuple[Mapping[str, Tensor], int]],
        initial: Mapping[str, Tensor],
        best: BestModelTracker,
    ) -> Iterator[SiteEvaluation]:
        """Let all sites make their final test at the same time.

        A request carries the best shared weights and, as an attachment, the ones before training.
        """
        self._silent = set()
        keys = SharedKeys(self.plan.shared_keys, self.plan.local_keys)
        done: Rounded = {}
        first = self.plan.wire.down({key: tensor for key, tensor in initial.items() if key in keys}, done)
        digests = _Digests()
        for name, (weights, number) in chosen.items():
            message = weights_message(self.plan.wire.down(weights, done))
            message["initial"] = first
            sets = {WEIGHTS: (number, message.weights), "initial": (0, first)}
            named = {item: (n, digests.of(one)) for item, (n, one) in sets.items() if one and self.by_digest}
            self._ask("test", name, number, message, named, mode=best.mode, best=_record(best, name))
        yield from self._evaluations(chosen)

    def _asked(self, names: Mapping[str, Any]) -> list[str]:
        return [name for name in names if name not in self._silent]

    def _evaluations(self, names: Mapping[str, Any]) -> Iterator[SiteEvaluation]:
        asked = set(self._asked(names))
        for name in names:
            if name not in asked:
                yield SiteEvaluation(name, [], "the site did not reply in this round and was not asked")
                continue
            try:
                facts = self._reply(name).facts
                yield SiteEvaluation(name, [ModelEvaluation(**one) for one in facts["found"]], facts["ended"])
            except SiteError as error:
                yield SiteEvaluation(name, [], reason_of(error))

    def rollback(self, name: str) -> None:
        """Have the site go back to its state before this round, with the next request."""
        self.state_rounds[name] = self._before[name]

    def save_states(self, round_number: int) -> dict[str, int]:
        """The round of each site's newest state, which it has written before its reply left."""
        return dict(self.state_rounds)

    def write_states(self) -> None:
        """Do nothing: the sites have written them."""

    def check_states(self, state_rounds: Mapping[str, int]) -> None:
        """Do nothing: a site checks its own files when it is asked to continue from one."""

    def keep_states(self, commits: Sequence[Mapping[str, int]]) -> None:
        """Let the sites know, with the next request, which of their states the commits refer to."""
        self._kept = list(commits)

    def close(self) -> None:
        """Do nothing: the caller that made the transport closes it."""


def _sizes(message: ExchangeObject | None) -> dict[str, int]:
    """Bytes of a message by item; validators check whether it is a message at all."""
    try:
        return {} if message is None else message_bytes(message)
    except (AttributeError, TypeError):
        return {}


def _length(plain: Mapping[str, Any]) -> int:
    """Bytes of plain values as JSON; 0 for other values, which validators refuse."""
    try:
        return len(json.dumps(plain))
    except (TypeError, ValueError, RecursionError):
        return 0


def _kind(request: Request) -> str:
    return kind_of_training(request.message) if request.kind == "train" else request.kind


class _Digests:
    """Digests of sets of tensors: one for all sites that are sent the same tensors with the same request."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, int], ...], str] = {}
        self._tensors: list[Mapping[str, Tensor]] = []  # as long as they live, no other tensor has their identity

    def of(self, tensors: Mapping[str, Tensor]) -> str:
        """The digest of a set."""
        identity = tuple((key, id(tensor)) for key, tensor in tensors.items())
        if identity not in self._known:
            self._known[identity] = digest_of(tensors)
            self._tensors.append(tensors)
        return self._known[identity]


class _KnownSets:
    """Record of the weights that one site holds, as far as the server knows."""

    #: a site that loses what it was sent this often is sent the whole from then on: something on the way changes it
    MOST_LOSSES = 3

    def __init__(self) -> None:
        self._held: set[str] = set()
        self._rounds: dict[int, str] = {}
        self._losses = 0

    def name_in(self, request: Request, digests: Mapping[str, tuple[int, str]], best_round: int | None) -> None:
        """Name in a request the sets that it is about, those of them that need not be sent, and what else to keep.

        Kept are the weights before training (round 0), the best ones and those of the last request.
        """
        if self._losses >= self.MOST_LOSSES:
            return
        request.digests = {item: digest for item, (_, digest) in digests.items()}
        request.held = [item for item, digest in request.digests.items() if digest in self._held]
        kept = {digest for number, digest in self._rounds.items() if number in (0, best_round)}
        request.keep = sorted((kept & self._held) - set(request.digests.values()))
        named = {*request.digests.values(), *request.keep}
        rounds = {**self._rounds, **dict(digests.values())}
        self._rounds = {number: digest for number, digest in rounds.items() if digest in named}

    def arrived(self, request: Request) -> None:
        """Note that a site has replied to a request, so that it holds what the request names."""
        if request.digests:
            self._held = {*request.digests.values(), *request.keep}

    def lost(self) -> None:
        """Note that the site does not hold what it should."""
        self._held.clear()
        self._losses += 1


def _record(best: BestModelTracker, name: str) -> list[Any] | None:
    return list(best.records[name]) if name in best.records else None
