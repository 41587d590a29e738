# SPDX-License-Identifier: Apache-2.0
"""Local pool: the sites of a federation in this process, built, held in memory and stored in their folders."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError, root_user_error
from fedmonai.federated.checkpoint import BestModelTracker, check_optimizer, read_site_state, restoring
from fedmonai.federated.costs import Costs, SentBefore
from fedmonai.federated.local_training import UpdateBuffers
from fedmonai.federated.messages import WEIGHTS, SharedKeys, kind_of_training, message_bytes
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.privacy import note_release
from fedmonai.federated.run_log import save_atomic
from fedmonai.federated.site import SiteAlgo
from fedmonai.federated.site_evaluation import ModelEvaluation, SiteEvaluation, evaluate_site, final_test, validation
from fedmonai.federated.state_files import StateFiles
from fedmonai.federated.validation import UpdateValidator
from fedmonai.federated.wire_form import Rounded

__all__ = ["LocalPool"]


class LocalPool:
    """Pool that builds, holds and stores sites in this process; a :class:`~fedmonai.federated.site_pool.SitePool`.

    Args:
        plan: what the sites are built from.
        resident_sites: how many sites are held in memory at a time; ``None`` for all. The others are built again from
            their folder for their local training.
        simulated: let a method read the training data of other sites (``alignment: inputs`` of FL-MRCM), as is possible
            where all data are on one machine only.

    Raises:
        ConfigError: when ``resident_sites`` is below 1.
    """

    def __init__(self, plan: SitePlan, resident_sites: int | None = None, simulated: bool = False) -> None:
        if resident_sites is not None and resident_sites < 1:
            raise ConfigError(f"resident_sites is {resident_sites}; give 1 or more, or null for all.")
        self.plan = plan
        self.resident_sites = resident_sites or len(plan.sites)
        self.simulated = simulated
        self.state_rounds: dict[str, int] = {}
        self.notes: list[str] = []
        self.costs = Costs()
        self._sent_before = SentBefore()
        self._rounded: Rounded = {}
        # all sites are sent the same tensors, which are looked through once
        self._guard = (plan.guard or UpdateValidator()).once()
        # the bound is for updates: a site that compared the server's weights with its own would reveal by its refusals
        # how far they are from what it has learned
        self._guard.max_norm = None
        self._resident: OrderedDict[str, SiteAlgo] = OrderedDict()
        self._dirty: set[str] = set()
        #: states that were taken and are not on disk yet; removed only when they are written
        self._unwritten: dict[Path, dict[str, Any]] = {}
        self._files = StateFiles(plan)
        self._updates = UpdateBuffers()
        #: weights and buffers that all sites without private weights share
        self._common: dict[str, Tensor] = {}
        self._round = 0
        self._before: dict[str, int] = {}

    def open(self, name: str) -> SiteAlgo:
        """The site, built or fetched from its folder if it is not in memory.

        Raises:
            ConfigError: when its configuration or its data cannot be used; the message names the site.
        """
        if name in self._resident:
            self._resident.move_to_end(name)
            return self._resident[name]
        while len(self._resident) >= self.resident_sites:
            self._offload(next(iter(self._resident)))
        site = SiteAlgo(**replace(self.plan, guard=self._guard).arguments(name))
        try:
            site.initialize()
        except Exception as error:
            cause = root_user_error(error)
            if cause is None:
                raise
            raise ConfigError(f"site '{name}': {cause}") from error
        if self.simulated:
            site.other_trainer = self._trainer_of
        if name in self.state_rounds:
            self._load(site, name, self.state_rounds[name])
        site.share_memory(self._common)
        self._resident[name] = site
        return site

    def _load(self, site: SiteAlgo, name: str, number: int) -> None:
        path = self.plan.state_file(name, number)
        state = self._unwritten.get(path) or read_site_state(path)
        with restoring(path, "resume with the configuration of the first run or choose another output_dir."):
            check_optimizer(state["optimizer"], site.trainer.optimizer)
            site.load_state_dict(state)

    def return_to(self, state_rounds: Mapping[str, int]) -> None:
        """Continue from these states: what is in memory is dropped."""
        self._resident.clear()
        self._dirty.clear()
        self._unwritten.clear()
        self._common = {}  # a site that is built anew begins with weights of its own
        self._sent_before = SentBefore()
        self.state_rounds = dict(state_rounds)
        self._files.find()

    def evict(self, name: str) -> None:
        """Drop a site from memory together with what is known of its state: it is built anew when it is opened."""
        self._resident.pop(name, None)
        self._dirty.discard(name)
        self.state_rounds.pop(name, None)
        if not self._resident:
            self._common = {}  # as it was built, not as it was trained

    def _trainer_of(self, name: str) -> Any:
        """The trainer of another site, for methods that exist in simulation only."""
        self.plan.refuse_unknown(name)
        if self.resident_sites < 2 and name not in self._resident:
            raise ConfigError(
                f"resident_sites is 1, but local training reads the data of site '{name}' too; give 2 or more."
            )
        return self.open(name).trainer

    def structure(self, name: str) -> Mapping[str, Tensor] | None:
        """Tensors of the keys, shapes and types that a site shares."""
        return self.open(name).reference

    def initial_weights(self, name: str) -> dict[str, Tensor]:
        """The weights a site starts from: its whole state dict."""
        return self.open(name).complete_model({}, "global")

    def shares_all(self) -> bool:
        """Whether the shared weights are a whole network."""
        site = next(iter(self._resident.values()), None) or self.open(self.plan.names[0])
        return not site.private

    def begin_round(self, round_number: int, messages: Mapping[str, ExchangeObject]) -> None:
        """Begin a round; the memory of the updates of the round before is used again."""
        self._round = round_number
        self._before = dict(self.state_rounds)
        self._updates.end_round()
        self._rounded = {}

    def train(self, name: str, message: ExchangeObject) -> ExchangeObject:
        """Train a site; its update's tensors are borrowed until the next round begins.

        With the plan's ``at_once`` they may be the site's own tensors, borrowed until the next site trains.

        Raises:
            Exception: whatever stopped the training.
        """
        kind, sent = kind_of_training(message), self.plan.wire.message_down(message, self._rounded)
        self.costs.sent(name, kind, self._sent_before.sizes(name, message, sent, self._round - 1))
        started = time.perf_counter()
        try:
            site = self.open(name)
            site.train(sent)
            if site.observing:  # neither weights to send nor a state to keep
                update = site.get_weights()
            else:
                self.mark_changed(name)
                # a filter may write to what it is given
                lent = self.plan.at_once and not (site.exchange_filters or site.post_weight_filters)
                update = site.get_weights({"out": site.reference if lent else self._updates.take(site.reference)})
        finally:
            self.costs.worked(name, kind, time.perf_counter() - started)
        note_release(self.plan.folder(name), update)
        self.costs.received(name, kind, message_bytes(update))
        return self.plan.wire.full(update, message.weights or {})

    def mark_changed(self, name: str) -> None:
        """Note that a site's state is newer than its file."""
        self._dirty.add(name)

    def rollback(self, name: str) -> None:
        """Discard a local training whose update is not used.

        A training that failed has left no trace; after a refused update the private state is read from its file again.
        """
        written = self.state_rounds.get(name) == self._round  # it was offloaded since
        if name in self._dirty or written:
            self._dirty.discard(name)
            self._resident.pop(name, None)
        if written:
            self.state_rounds.pop(name)
            self.plan.state_file(name, self._round).unlink(missing_ok=True)
            if name in self._before:
                self.state_rounds[name] = self._before[name]

    def validate(
        self, messages: Mapping[str, ExchangeObject], number: int, best: BestModelTracker, key_metric: str
    ) -> Iterator[SiteEvaluation]:
        """Evaluate the sites in ``messages`` on their validation splits, one after another."""
        done: Rounded = {}
        for name, message in messages.items():
            sent = self.plan.wire.message_down(message, done)
            self.costs.sent(name, "validate", self._sent_before.sizes(name, message, sent, number))
            started = time.perf_counter()
            found = evaluate_site(name, self._validation(name, sent, number, best, key_metric))
            self.costs.worked(name, "validate", time.perf_counter() - started)
            yield found

    def _validation(
        self, name: str, message: ExchangeObject, number: int, best: BestModelTracker, key_metric: str
    ) -> Iterator[ModelEvaluation]:
        # a generator, so that opening the site is part of what `evaluate_site` watches
        yield from validation(self.open(name), message, number, best, key_metric, self.plan.own_model(name))

    def test(
        self,
        chosen: Mapping[str, tuple[Mapping[str, Tensor], int]],
        initial: Mapping[str, Tensor],
        best: BestModelTracker,
    ) -> Iterator[SiteEvaluation]:
        """Test the sites in ``chosen`` (the best weights and their round for each), one after another."""
        wire, keys = self.plan.wire, SharedKeys(self.plan.shared_keys, self.plan.local_keys)
        done: Rounded = {}
        first = wire.down({key: tensor for key, tensor in initial.items() if key in keys}, done)
        whole = {**initial, **first}
        for name, (weights, best_round) in chosen.items():
            sent = wire.down(weights, done)
            self.costs.sent(
                name, "test", self._sent_before.tested(name, {"initial": (first, 0), WEIGHTS: (sent, best_round)})
            )
            number = best.round(name)
            own_model = None if number is None else (self.plan.own_model(name), number)
            started = time.perf_counter()
            found = evaluate_site(name, self._final_test(name, whole, (sent, best_round), own_model))
            self.costs.worked(name, "test", time.perf_counter() - started)
            yield found

    def _final_test(self, name: str, *arguments: Any) -> Iterator[ModelEvaluation]:
        yield from final_test(self.open(name), *arguments)

    def save_states(self, round_number: int) -> dict[str, int]:
        """Take the state of every site that has changed; return the round of each site's newest one."""
        self._round = round_number
        for name in sorted(self._dirty & set(self._resident)):
            self._unwritten[self._state_file(name)] = self._resident[name].state_dict()
        return dict(self.state_rounds)

    def write_states(self) -> None:
        """Write the states that were taken.

        Raises:
            FederationError: when one cannot be written.
        """
        for path in list(self._unwritten):
            save_atomic(self._unwritten[path], path)
            del self._unwritten[path]  # at once: the site may be opened again, from memory or from the file

    def _offload(self, name: str) -> None:
        if name in self._dirty:
            path = self._state_file(name)
            save_atomic(self._resident[name].state_dict(), path)
        del self._resident[name]

    def _state_file(self, name: str) -> Path:
        """Register the file of a site's current state as its newest; return its path."""
        self.state_rounds[name] = self._round
        self._files.note(name, self._round)
        self._dirty.discard(name)
        return self.plan.state_file(name, self._round)

    def check_states(self, state_rounds: Mapping[str, int]) -> None:
        """Raise ConfigError when a state file of a commit cannot be read."""
        self._files.check(state_rounds)

    def keep_states(self, commits: Sequence[Mapping[str, int]]) -> None:
        """Delete state files that none of ``commits`` refers to."""
        self._files.keep(commits)

    def close(self) -> None:
        """Do nothing: all sites are in this process."""
