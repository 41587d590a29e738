# SPDX-License-Identifier: Apache-2.0
"""A federation as a MONAI engine: one epoch is one round, one iteration is one site's turn."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import Workflow
from monai.fl.utils.exchange_object import ExchangeObject

from fedmonai.errors import ConfigError, FederationError
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.messages import message_bytes
from fedmonai.federated.protocol import Strategy
from fedmonai.federated.run import Run
from fedmonai.federated.run_log import RoundRecord
from fedmonai.federated.validation import UpdateValidator
from fedmonai.names import as_list
from fedmonai.seeding import derive_seed

__all__ = ["Federation", "attach"]

logger = logging.getLogger(__name__)


class Federation(Workflow):
    """Runs rounds over the sites of :class:`LocalPool` with one strategy, in this process.

    Everything that attaches to a MONAI engine attaches to it: after every round ``engine.state.metrics`` holds
    ``train_loss`` and ``val_<metric>``, as means over sites and as ``<name>_<site>`` for each one.

    A site that raises, trains to a non-finite loss or sends an update that the guard refuses is left out of the round
    with its reason recorded; the next round tries it again. Below ``min_sites`` the run stops with its last good state
    on disk.

    Args:
        sites: the sites.
        strategy: the aggregation.
        num_rounds: rounds of training.
        output_dir: folder of the run; must be that of ``sites``.
        train_sites: names of the sites that train; ``None`` for all.
        test_sites: names of the sites that are tested at the end; ``None`` for all.
        fraction: share of the training sites that takes part in a round, in (0, 1]; drawn anew from (seed, round).
        min_sites: fewest sites whose updates make a round.
        val_interval: rounds between validations; the last round is always validated.
        key_metric: validation metric that chooses the best round.
        key_metric_mode: ``max`` or ``min``.
        seed: base seed of the choice of participants; sites have their own.
        resume: continue the run in ``output_dir``; without a committed round there it starts from the beginning.
        init_ckpt: file of weights to start from.
        guard: check of updates.
        device: where the aggregate lives; the sites' own device avoids copies.
        method: name of the method, for the report.

    Raises:
        ConfigError: on values outside their ranges and unknown site names.
    """

    #: what expressions of a config may use of an object
    CONFIG_NAMES = ("prepare",)

    def __init__(
        self,
        sites: LocalPool,
        strategy: Strategy,
        num_rounds: int,
        output_dir: str,
        train_sites: Sequence[str] | None = None,
        test_sites: Sequence[str] | None = None,
        fraction: float = 1.0,
        min_sites: int = 1,
        val_interval: int = 1,
        key_metric: str = "psnr",
        key_metric_mode: str = "max",
        seed: int = 0,
        resume: bool = False,
        init_ckpt: str | None = None,
        guard: UpdateValidator | None = None,
        device: torch.device | str = "cpu",
        method: str = "federation",
    ) -> None:
        self.train_sites = _known(sites, "train_sites", train_sites)
        self.test_sites = _known(sites, "test_sites", test_sites)
        observers = _known(sites, "target_site", strategy.observers) if strategy.observers else []
        self.observers = [name for name in observers if name not in self.train_sites]
        _check_numbers(num_rounds, fraction, min_sites, val_interval, len(self.train_sites))
        super().__init__(
            device=device,
            max_epochs=num_rounds,
            data_loader=self._turns(),
            epoch_length=len(self.train_sites),
            decollate=False,
        )
        self.sites, self.strategy = sites, strategy
        self.fraction, self.min_sites, self.val_interval = fraction, min_sites, val_interval
        self.seed = seed
        self.guard = guard or UpdateValidator()
        self.handlers: list[Any] = []
        self._work_left: bool | None = None
        self._queue: list[str] = []
        self._messages: dict[str, ExchangeObject] = {}
        self._updates: dict[str, ExchangeObject] = {}
        self.run_state = Run(self, output_dir, key_metric, key_metric_mode, resume, init_ckpt, method)
        # ignite calls handlers in the order of registration: these come before any that a user attaches
        self.add_event_handler(Events.EPOCH_STARTED, self._begin_round)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._end_round)
        self.add_event_handler(Events.COMPLETED, self._finish)

    def prepare(self) -> bool:
        """Open the run folder, build every site, draw or load the weights; return whether rounds or the test are left.

        :meth:`run` does it if it was not done before. Nothing is written for a run that cannot start.
        """
        if self._work_left is None:
            try:
                self._work_left = self.run_state.prepare()
            except BaseException:
                self.run_state.folder.close()
                raise
        return self._work_left

    def run(self) -> None:  # type: ignore[override]
        """Run the rounds that are left and test the best model.

        Raises:
            ConfigError: when the folder holds a run and ``resume`` is false, or a site cannot be built.
            FederationError: when fewer than ``min_sites`` sites are left in a round.
        """
        try:
            if self.prepare():
                self.run_state.restore_handlers()
                if self.state.epoch >= self.state.max_epochs:
                    self._finish()
                else:
                    super().run()
        finally:
            self.run_state.folder.close()
            self._work_left = None

    def participants(self, round_number: int) -> list[str]:
        """The sites that train in a round, sorted; a function of (seed, round) alone."""
        own = self.strategy.participants(round_number, self.train_sites, self.seed)
        if own is not None:
            return sorted(own)
        # rounded first: 0.28 of 25 sites is 7 and not, for the last bit of the product, 8
        count = max(self.min_sites, math.ceil(round(self.fraction * len(self.train_sites), 9)))
        chosen = random.Random(derive_seed(self.seed, "participants", round_number)).sample(self.train_sites, count)
        return sorted(chosen)

    def _turns(self) -> Iterator[str]:
        while True:
            yield self._queue.pop(0)

    def _begin_round(self) -> None:
        self.run_state.commit()
        number = self.state.epoch
        training = self.participants(number)
        self._queue = sorted({*training, *self.observers})
        # with a fixed length ignite would train sites twice; with a drifting count it would stop early
        self.state.epoch_length = len(self._queue)
        self.state.iteration = (number - 1) * len(self._queue)
        self._messages = self.strategy.configure_round(number, list(self._queue))
        for name in self.observers:
            self._messages[name].statistics["observe"] = 1
        self._updates = {}
        self.sites.begin_round(number, self._messages)
        self.record = RoundRecord(number, training)

    def _iteration(self, engine: Any, batchdata: Any) -> dict[str, Any]:
        name, number = str(batchdata), self.state.epoch
        started = time.perf_counter()
        message = self._messages.pop(name)
        self.record.bytes_down[name] = message_bytes(message)
        loss = math.nan
        try:
            update = self.sites.train(name, message)
            observer, declared = name in self.observers, self.strategy.attachments_up
            self.guard.check_update(update, self.strategy.global_weights, number, declared, observer)
            self.strategy.check_update(name, update)
            note = self.record.observed if observer else self.record.completed
            note(name, update)
            self._updates[name] = update  # last: what fails above is in no average
            loss = float((update.statistics or {}).get("loss", math.nan))
        except Exception as error:  # whatever a site's own code raises, the round goes on without it
            self.sites.undo(name)
            self.record.fail(name, error)
            logger.warning("round %d: site '%s' is left out: %s", number, name, self.record.failed[name])
        self.record.seconds_per_site[name] = time.perf_counter() - started
        return {"site": name, "loss": loss}

    def _end_round(self) -> None:
        number = self.state.epoch
        if len(self.record.loss) < self.min_sites:
            reasons = "; ".join(f"{site}: {reason}" for site, reason in sorted(self.record.failed.items()))
            raise FederationError(
                f"round {number}: {len(self.record.loss)} of {len(self.record.participants)} sites finished, min_sites "
                f"is {self.min_sites}. {reasons}. The state after round {number - 1} is in "
                f"'{self.run_state.folder.path}': mend the sites and continue with --resume True."
            )
        self.strategy.aggregate(number, self._updates)
        self._updates = {}
        self.record.attachments = self.strategy.describe_round()
        self.run_state.record_round(self.record, validate=self._is_validated(number))

    def _is_validated(self, number: int) -> bool:
        return number % self.val_interval == 0 or number == self.state.max_epochs

    def _finish(self) -> None:
        self.run_state.commit()
        self.run_state.finish()


def attach(engine: Federation, handlers: Sequence[Any] | None = None) -> Federation:
    """Attach handlers to a federation and return it; their state becomes part of what a resumed run restores.

    In a config this is a component of its own, because a handler inside the engine's section could not refer to the
    engine.
    """
    for handler in handlers or []:
        handler.attach(engine)
        engine.handlers.append(handler)
    return engine


def _known(sites: LocalPool, config_id: str, names: Sequence[str] | None) -> list[str]:
    chosen = sites.names if names is None else sorted(dict.fromkeys(as_list(names)))
    unknown = [name for name in chosen if name not in sites.specs]
    if unknown or not chosen:
        what = f"names '{unknown[0]}', which is no site" if unknown else "is empty"
        raise ConfigError(f"{config_id} {what}; the sites of this federation are {', '.join(sites.names)}.")
    return chosen


def _check_numbers(num_rounds: int, fraction: float, min_sites: int, val_interval: int, num_sites: int) -> None:
    if num_rounds < 1:
        raise ConfigError(f"num_rounds is {num_rounds}; give 1 or more.")
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction is {fraction}; give the share of sites per round, above 0 and at most 1.")
    if not 1 <= min_sites <= num_sites:
        raise ConfigError(
            f"min_sites is {min_sites}; give a number from 1 to the number of training sites ({num_sites})."
        )
    if val_interval < 1:
        raise ConfigError(f"val_interval is {val_interval}; give 1 or more rounds.")
