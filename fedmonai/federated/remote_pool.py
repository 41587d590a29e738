# SPDX-License-Identifier: Apache-2.0
"""Remote pool: the sites of a federation that live elsewhere, asked over a transport."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.checkpoint import BestModelTracker
from fedmonai.federated.messages import Reply, Request, SharedKeys, weights_message
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.run_log import SiteError, reason_of
from fedmonai.federated.site_evaluation import ModelEvaluation, SiteEvaluation
from fedmonai.federated.validation import InvalidUpdate, UpdateValidator, dtype_named, validated_reply

__all__ = ["RemotePool", "Transport"]

logger = logging.getLogger(__name__)


class Transport(Protocol):
    """Transport of requests and replies, which a runtime provides. A request reaches its own site only.

    It may have a list ``notes`` of what happened to its connections, which the pool records and empties.
    """

    def send(self, request: Request) -> None:
        """Send, without waiting; a request to the same site without a reply is given up."""

    def wait(self, site: str) -> Reply:
        """The reply to what was sent last.

        Raises:
            SiteError: when no reply came: the site is not connected, has died or took too long.
        """


class RemotePool:
    """The server's view of sites elsewhere; a :class:`~fedmonai.federated.site_pool.SitePool`.

    All sites of a round work at the same time. Private weights, single cases and personal models are on the sites' own
    disks; the server's commit names the round of every site's state, a site goes back to it where it is ahead.

    Args:
        plan: what the sites are built from; here only their names and what is shared count.
        transport: what carries requests and replies.
    """

    def __init__(self, plan: SitePlan, transport: Transport) -> None:
        self.plan, self.transport = plan, transport
        self.state_rounds: dict[str, int] = {}
        self.notes: list[str] = []
        self._joined: dict[str, Reply] | None = None
        self._requests: dict[str, Request] = {}
        self._kept: list[Mapping[str, int]] = []
        self._silent: set[str] = set()
        self._before: dict[str, int] = {}

    def _ask(self, kind: str, name: str, number: int, message: ExchangeObject | None = None, **facts: Any) -> None:
        state_round = self.state_rounds.get(name, 0)
        facts["state_round"] = state_round
        if self._kept:
            facts["kept"] = sorted({state_round, *(commit[name] for commit in self._kept if name in commit)})
        request = Request(kind, name, number, message, facts)
        self._requests[name] = Request(kind, name, number, None, facts)  # what its reply is held against
        self.transport.send(request)
        noted: list[str] = getattr(self.transport, "notes", [])
        self._note(*noted)
        noted.clear()

    def _reply(self, name: str) -> Reply:
        try:
            reply = self.transport.wait(name)
        except SiteError:
            self._silent.add(name)  # it is not asked again in this round
            raise
        reply, left_out = validated_reply(reply, self._requests[name])
        if "state_round" in reply.facts:
            self.state_rounds[name] = reply.facts["state_round"]
        self._note(*(f"site '{name}': {note}" for note in [*reply.facts["notes"], *left_out]))
        if reply.error is not None:
            raise SiteError(reply.error)
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
            raise ConfigError(f"none of the sites {', '.join(self.plan.names)} answers: {'; '.join(self.notes)}")
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
        for name, message in messages.items():
            self._ask("train", name, round_number, message)

    def train(self, name: str, message: ExchangeObject) -> ExchangeObject:
        """Wait for the site's update; the message was sent when the round began."""
        update = self._reply(name).message
        if update is None:
            raise SiteError("the reply holds no update")
        return update

    def validate(
        self, messages: Mapping[str, ExchangeObject], number: int, best: BestModelTracker, key_metric: str
    ) -> Iterator[SiteEvaluation]:
        """Let all sites evaluate at the same time. A site that was silent in this round is not asked."""
        for name in self._asked(messages):
            facts = {"key_metric": key_metric, "mode": best.mode, "best": _record(best, name)}
            self._ask("validate", name, number, messages[name], **facts)
        yield from self._evaluations(messages)

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
        first = {key: tensor for key, tensor in initial.items() if key in keys}
        for name, (weights, number) in chosen.items():
            message = weights_message(weights)
            message["initial"] = first
            self._ask("test", name, number, message, mode=best.mode, best=_record(best, name))
        yield from self._evaluations(chosen)

    def _asked(self, names: Mapping[str, Any]) -> list[str]:
        return [name for name in names if name not in self._silent]

    def _evaluations(self, names: Mapping[str, Any]) -> Iterator[SiteEvaluation]:
        asked = set(self._asked(names))
        for name in names:
            if name not in asked:
                yield SiteEvaluation(name, [], "the site gave no answer in this round and was not asked")
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
        """Does nothing: the sites have written them."""

    def check_states(self, state_rounds: Mapping[str, int]) -> None:
        """Does nothing: a site checks its own files when it is asked to continue from one."""

    def keep_states(self, commits: Sequence[Mapping[str, int]]) -> None:
        """Let the sites know, with the next request, which of their states the commits refer to."""
        self._kept = list(commits)

    def close(self) -> None:
        """Does nothing: whoever gave the transport closes it."""


def _record(best: BestModelTracker, name: str) -> list[Any] | None:
    return list(best.records[name]) if name in best.records else None
