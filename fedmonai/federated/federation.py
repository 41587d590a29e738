# SPDX-License-Identifier: Apache-2.0
"""A federation as a MONAI engine: one epoch is one round, one iteration is one site's local training."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import Workflow
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from fedmonai.errors import ConfigError, FederationError
from fedmonai.federated.checkpoint import Checkpoint, changes_since, restoring, start_from
from fedmonai.federated.evaluation import Evaluations
from fedmonai.federated.local_training import load_stateful, reset_engine, stateful_parts
from fedmonai.federated.protocol import Accumulator, Strategy
from fedmonai.federated.run_log import RoundRecord, RunConfig, describe_environment, save_atomic, summary
from fedmonai.federated.site_pool import SitePool
from fedmonai.federated.validation import InvalidUpdate, UpdateValidator, UsualNorm
from fedmonai.interruption import announced
from fedmonai.io import InputPath, load_checked, to_device
from fedmonai.names import as_list, shown
from fedmonai.seeding import derive_seed

__all__ = ["Federation", "attach"]

logger = logging.getLogger(__name__)
_SAME_RUN = "resume with the network, shared_keys and strategy of the first run."


class Federation(Workflow):
    """Federation: runs rounds over the sites of a pool with one strategy.

    Everything that attaches to a MONAI engine attaches to it: after every round ``engine.state.metrics`` holds
    ``train_loss`` and ``val_<metric>``, as means over sites and as ``<name>_<site>`` for each one.

    A site that raises, trains to a non-finite loss or sends an invalid update is left out of the round
    with its reason recorded; the next round tries it again. Below ``min_sites`` the run stops with its last good state
    on disk.

    Folder of the run, seed and validator are those of the sites' plan; what the strategy declares (what is shared, its
    attachments) is passed on to the sites.

    Args:
        sites: the sites.
        strategy: the aggregation.
        num_rounds: rounds of training; 0 evaluates the weights of ``init_ckpt``, which are then those of round 0.
        train_sites: names of the sites that train; ``None`` for all.
        test_sites: names of the sites that are tested at the end; ``None`` for all.
        fraction: share of the training sites that takes part in a round, in (0, 1]; drawn anew from (seed, round).
        min_sites: fewest sites whose updates make a round.
        val_interval: rounds between validations; the last round is always validated.
        validated_fraction: share of the training sites that is validated, in (0, 1]; drawn once from the seed: rounds
            are compared over the same sites, and sites drawn anew in each round would rarely be the same.
        key_metric: validation metric that chooses the best round.
        key_metric_mode: ``max`` or ``min``.
        resume: continue the run in the folder; without a committed round there it starts from the beginning.
        resume_round: continue after this round, one of the two that are kept; later rounds are discarded.
        init_ckpt: file of weights to start from.
        device: where the aggregate lives; the sites' own device avoids copies.
        method: name of the method, for the report.
        run_config: the config that all this was made from, for the records.

    Raises:
        ConfigError: on values outside their ranges and unknown site names.
    """

    #: attributes that expressions of a config may use
    CONFIG_NAMES = ("prepare",)

    def __init__(
        self,
        sites: SitePool,
        strategy: Strategy,
        num_rounds: int,
        train_sites: Sequence[str] | None = None,
        test_sites: Sequence[str] | None = None,
        fraction: float = 1.0,
        min_sites: int = 1,
        val_interval: int = 1,
        validated_fraction: float = 1.0,
        key_metric: str = "psnr",
        key_metric_mode: str = "max",
        resume: bool = False,
        resume_round: int | None = None,
        init_ckpt: InputPath | None = None,
        device: torch.device | str = "cpu",
        method: str = "federation",
        run_config: RunConfig | None = None,
    ) -> None:
        names = sites.plan.names
        self.train_sites = _known(names, "train_sites", train_sites)
        self.test_sites = _known(names, "test_sites", test_sites)
        observers = _known(names, "target_site", strategy.observers) if strategy.observers else []
        twice = strategy.observers_train
        self.observers = [name for name in observers if twice or name not in self.train_sites]
        if num_rounds == 0 and not init_ckpt and not (resume or resume_round is not None):
            raise ConfigError("num_rounds is 0, which evaluates given weights; name their file with init_ckpt.")
        _check_numbers(num_rounds, fraction, min_sites, val_interval, len(self.train_sites))
        _check_share("validated_fraction", validated_fraction)
        super().__init__(
            device=device,
            max_epochs=num_rounds,
            data_loader=self._queued(),
            epoch_length=len(self.train_sites),
            decollate=False,
        )
        sites.plan = sites.plan.serving(strategy)
        self.sites, self.strategy = sites, strategy
        self.fraction, self.min_sites, self.val_interval = fraction, min_sites, val_interval
        self.seed = sites.plan.seed
        self.val_sites = self._drawn(validated_fraction, 1, "validated")
        self.guard = sites.plan.guard or UpdateValidator()
        self.usual_norm = UsualNorm(self.guard.max_norm_ratio)
        self.key_metric, self.init_ckpt, self.method = key_metric, init_ckpt, method
        self.resume, self.resume_round = resume or resume_round is not None, resume_round
        self.run_config = run_config or RunConfig()
        self.handlers: list[Any] = []
        self._work_left: bool | None = None
        self._queue: list[str] = []
        self._messages: dict[str, ExchangeObject] = {}
        self._updates: dict[str, ExchangeObject] = {}
        self._accumulator: Accumulator | None = None
        self._handler_states: dict[str, Any] | None = None
        #: of the round that ended last: bytes and seconds by site
        self.round_costs: dict[str, Any] = {}
        #: bytes and seconds of the final test
        self._final_costs: dict[str, Any] = {}
        #: the round that was recorded and is not committed yet
        self._pending: int | None = None
        self._stage = "before the first round"
        #: the commit to go back to from a state that no site can train from, and the rounds where that was done
        self._way_back: dict[str, Any] | None = None
        self._given_up: set[int] = set()
        self.state.key_metric_name = f"val_{key_metric}"
        self.checkpoint = Checkpoint(sites.plan.output_dir, key_metric_mode)
        self.evaluations = Evaluations(sites, strategy, self.checkpoint, key_metric)
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
                self._work_left = self._prepare()
            except BaseException:
                self.close()
                raise
        return self._work_left

    def close(self) -> None:
        """Wait for the last commit, then release the run's folder and end the sites' processes.

        :meth:`run` does it at its end.
        """
        try:
            self.checkpoint.close()
        finally:
            self.sites.close()

    def run(self) -> None:  # type: ignore[override]
        """Run the rounds that are left and test the best model.

        Raises:
            ConfigError: when the folder holds a run and ``resume`` is false, or a site cannot be built.
            FederationError: when fewer than ``min_sites`` sites are left in a round, or no site could be tested.
        """
        with announced(self._where_it_stops):
            try:
                if self.prepare():
                    self._run_rounds()
            finally:
                self.close()
                self._work_left = None

    def _run_rounds(self) -> None:
        self._restore_handlers()
        while self.state.epoch < self.state.max_epochs:
            try:
                super().run()
                return
            except FederationError as error:
                if self._way_back is None:
                    raise
                self._step_back(self._way_back, error)
        self._finish()

    def _step_back(self, state: dict[str, Any], error: FederationError) -> None:
        """Continue from an earlier commit, as a resumed run does."""
        self._way_back = None
        self.checkpoint.note(f"{error} No site can train from that state; going on after round {state['round']}.")
        reset_engine(self, 0, 0)
        self.sites.return_to(self._site_rounds(state))
        self._continue(state)
        self._restore_handlers()
        self.checkpoint.folder.write_json("run.json", self._description())

    def _where_it_stops(self) -> str:
        """What is printed when a user stops the process."""
        folder = self.sites.plan.output_dir
        if not (self.checkpoint.exists() or self.checkpoint.outstanding):
            return f"stopped {self._stage}; '{folder}' holds no committed round to resume: start again."
        return f"stopped {self._stage}; what is committed in '{folder}' is complete: resume with --resume True."

    def participants(self, round_number: int) -> list[str]:
        """The sites that train in a round, sorted; a function of (seed, round) alone."""
        own = self.strategy.participants(round_number, self.train_sites, self.seed)
        if own is not None:
            return sorted(own)
        return self._drawn(self.fraction, self.min_sites, "participants", round_number)

    def _drawn(self, share: float, fewest: int, *what: Any) -> list[str]:
        """A share of the training sites, sorted; a function of the seed and of what they are drawn for."""
        # rounded first: 0.28 of 25 sites is 7, not 8 because of the last bit of the product
        count = max(fewest, math.ceil(round(share * len(self.train_sites), 9)))
        return sorted(random.Random(derive_seed(self.seed, *what)).sample(self.train_sites, count))

    def _prepare(self) -> bool:
        checkpoint, plan = self.checkpoint, self.sites.plan
        if checkpoint.exists() and not self.resume:
            raise ConfigError(
                f"output_dir '{plan.output_dir}' already holds a run; continue it with --resume True, or choose "
                "another --output_dir."
            )
        if not checkpoint.exists():
            if self.resume_round is not None:
                raise ConfigError(
                    f"resume_round is {self.resume_round}, but output_dir '{plan.output_dir}' holds no committed "
                    "round; leave it out, or correct --output_dir."
                )
            self._start(self._open_sites(1))
        else:
            state = checkpoint.read(self.sites.check_states, self.resume_round)
            if not self._has_work(state):
                return False
            self.sites.return_to(self._site_rounds(state))
            for note in changes_since(state, plan.names, self.seed, self.run_config):
                checkpoint.note(note)
            self._open_sites(state["round"] + 1, state["strategy"].get("global_weights"))
            self._continue(state)
        if self.run_config.digest:
            checkpoint.folder.write_once(self.run_config.file, self.run_config.text)
        checkpoint.folder.write_json("run.json", self._description())
        return True

    def _site_rounds(self, state: dict[str, Any]) -> dict[str, int]:
        """The rounds of the states that the sites of this federation had at a commit."""
        return {name: number for name, number in state["site_rounds"].items() if name in self.sites.plan.sites}

    def _has_work(self, state: dict[str, Any]) -> bool:
        done, wanted = state["round"], self.state.max_epochs
        if not state["finished"] or (done < wanted and not state["stopped"]):
            return True
        why = "was stopped early by a handler" if state["stopped"] else "is finished"
        logger.warning(
            "the run in '%s' %s (round %d of %d); nothing is done. For more rounds raise num_rounds.",
            self.sites.plan.output_dir,
            why,
            done,
            wanted,
        )
        return False

    def _open_sites(self, round_number: int, committed: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Open every site once, so that a mistake in any of them ends the run before the first round.

        With ``fraction`` below 1, only those of the first round and those that do not train: the others are opened when
        they are first asked, and a mistake then excludes them from the round.

        Args:
            round_number: the first round that is run now.
            committed: the global weights of a run that is continued.
        """
        weights: dict[str, Tensor] = {}
        names = self.sites.plan.names
        if self.fraction < 1:
            others = (set(self.test_sites) | set(self.observers)) - set(self.train_sites)
            names = sorted(others.union(self.participants(round_number)))
        for name in names:
            structure = self.sites.structure(name)
            if structure is None:
                continue
            if not weights and committed is not None:  # before tensors of the declared sizes are allocated
                with restoring(self.checkpoint.path, _SAME_RUN):
                    self.guard.check_structure(structure, committed)
            try:
                if not weights:
                    weights = self.sites.initial_weights(name)
                    self.strategy.initialize(weights)
                    self.guard.check_weights(self.strategy.global_weights, self.strategy.global_weights)
                self.guard.check_structure(structure, self.strategy.global_weights)
            except InvalidUpdate as error:
                raise ConfigError(
                    f"site '{name}' has another network than site '{names[0]}': {error}. What is shared "
                    "must be the same at all sites; make it private with local_keys or give the sites the same network."
                ) from error
        return weights

    def _start(self, initial: dict[str, Tensor]) -> None:
        if self.init_ckpt:
            initial, note = start_from(self.init_ckpt, initial)
            self.checkpoint.notes.append(note)
            self.strategy.initialize(initial)
        if self.state.max_epochs == 0:
            self.checkpoint.notes.append("evaluation only: the given weights are tested as round 0, nothing is trained")
        self.checkpoint.start(initial)

    def _continue(self, state: dict[str, Any]) -> None:
        reference = dict(self.strategy.global_weights)
        with restoring(self.checkpoint.path, _SAME_RUN):
            # files are read into main memory; the aggregate goes back to where it lived
            self.strategy.load_state_dict(to_device(state["strategy"], next(iter(reference.values())).device))
            self.guard.check_structure(self.strategy.global_weights, reference)
        self.usual_norm.load_state_dict(state["usual_norm"])
        self.checkpoint.restore(state)
        self.strategy.forget(set(state["sites"]) - set(self.sites.plan.names))
        self.state.epoch = state["round"]
        self.state.iteration = state["round"] * self.state.epoch_length
        self.state.metrics = dict(state["metrics"])
        self._show_best()
        self._handler_states = state["handlers"]
        logger.info("continuing after round %d of %d", state["round"], self.state.max_epochs)

    def _restore_handlers(self) -> None:
        """Give the attached handlers the state they had at the last commit."""
        if self._handler_states is None:
            return
        with restoring(self.checkpoint.path, "resume with the handlers of the first run."):
            unmatched = load_stateful(stateful_parts(self.handlers), self._handler_states)
        self._handler_states = None
        if unmatched:
            self.checkpoint.note(f"handlers changed since the first run, fresh state for: {', '.join(unmatched)}")

    def _queued(self) -> Iterator[str]:
        while True:
            yield self._queue.pop(0)

    def _begin_round(self) -> None:
        self._commit()
        number = self.state.epoch
        self._stage = f"in round {number}"
        training = self.participants(number)
        self.record = RoundRecord(number, training)
        self._observe(number)
        self._queue = sorted(set(training))
        # with a fixed length ignite would train sites twice; with a drifting count it would stop early
        self.state.epoch_length = len(self._queue)
        self.state.iteration = (number - 1) * len(self._queue)
        self._messages = self.strategy.configure_round(number, list(self._queue))
        self._updates = {}
        self._accumulator = self.strategy.accumulator() if self.sites.plan.at_once else None
        self.sites.begin_round(number, self._messages)

    def _observe(self, number: int) -> None:
        """Ask the observers first: what they contribute may be part of the training sites' messages."""
        if not self.observers:
            return
        messages = self.strategy.configure_round(number, self.observers)
        for message in messages.values():
            message.statistics["observe"] = 1
        self.sites.begin_round(number, messages)
        replies = {name: self._ask(name, messages[name], observer=True) for name in self.observers}
        self.strategy.observed(number, {name: reply for name, reply in replies.items() if reply is not None})

    def _iteration(self, engine: Any, batchdata: Any) -> dict[str, Any]:
        name = str(batchdata)
        update = self._ask(name, self._messages.pop(name))
        if update is None:
            return {"site": name, "loss": math.nan}
        if self._accumulator is None:
            self._updates[name] = update  # after all checks: a failed update is in no average
        else:
            self._accumulator.add(update)
        return {"site": name, "loss": float((update.statistics or {}).get("loss", math.nan))}

    def _ask(self, name: str, message: ExchangeObject, observer: bool = False) -> ExchangeObject | None:
        """The checked update of a site, recorded; ``None`` for a site that is left out."""
        number, record = self.state.epoch, self.record
        try:
            update = self.sites.train(name, message)
            declared = self.strategy.attachments_up
            norm = self.guard.check_update(update, self.strategy.global_weights, number, declared, observer)
            self.strategy.check_update(name, update)
            if observer:
                record.observed(name)
            else:
                record.completed(name, update, norm)
        except Exception as error:  # whatever a site's own code raises, the round continues without it
            self._leave_out(name, error)
            return None
        return update

    def _leave_out(self, name: str, error: Exception) -> None:
        self._updates.pop(name, None)
        self.sites.rollback(name)
        self.record.fail(name, error)
        logger.warning("round %d: site '%s' is left out: %s", self.record.number, name, self.record.failed[name])

    def _end_round(self) -> None:
        number = self.state.epoch
        for name, refusal in self.usual_norm.outliers(self.record.update_norm, self.strategy.global_weights).items():
            self._leave_out(name, refusal)
        if len(self.record.loss) < self.min_sites:
            raise FederationError(self._too_few(number))
        if self._accumulator is None:
            self.strategy.aggregate(number, self._updates)
        else:
            self._accumulator.finish()
        self._updates = {}
        self.record.attachments = self.strategy.describe_round()
        self._record_round(validate=number % self.val_interval == 0 or number == self.state.max_epochs)

    def _too_few(self, number: int) -> str:
        """Describe why a round cannot be aggregated and how to continue; find the commit to go back to."""
        record, folder = self.record, self.sites.plan.output_dir
        reasons = "; ".join(f"{site}: {reason}" for site, reason in sorted(record.failed.items()))
        text = (
            f"round {number}: {len(record.loss)} of {len(record.participants)} sites finished, min_sites is "
            f"{self.min_sites}. {reasons}. The state after round {number - 1} is in '{folder}'"
        )
        self.checkpoint.join()
        earlier = self.checkpoint.read_previous(self.sites.check_states)
        if record.all_diverged() and number not in self._given_up:
            self._given_up.add(number)
            self._way_back = earlier
        if self._way_back is not None:
            return f"{text}."
        text = f"{text}: correct the sites and continue with --resume True"
        return f"{text}." if earlier is None else f"{text}, or go back with --resume_round {earlier['round']}."

    def _record_round(self, validate: bool) -> None:
        """Write down a round that was aggregated; validate it if it is due. The commit follows after all handlers."""
        record, best, folder = self.record, self.checkpoint.best, self.checkpoint.folder
        metrics = record.train_summary()
        if validate:
            record.validated = self.val_sites
            found, notes = self.evaluations.validate(record.number, self.val_sites)
            record.notes += notes
            for metric, values in found.items():
                metrics |= summary(f"val_{metric}", values)
            self._show_best()
        record.notes += self.sites.notes
        self.sites.notes = []
        self.state.metrics = {**self.state.metrics, **metrics}
        folder.add_metrics(record.metric_rows())
        further = {"evaluated": validate, "best_round": best.round(), "best_metric": best.value()}
        self.round_costs = self.sites.costs.take()
        folder.add_round(record.as_dict(config=self.run_config.digest, **self.round_costs, **further))
        self._pending = record.number

    def _show_best(self) -> None:
        best = self.checkpoint.best
        if best.value() is not None:
            self.state.best_metric, self.state.best_metric_epoch = best.value(), best.round()

    def _commit(self, finished: bool = False) -> None:
        """Start to write the state of the round that was recorded last, in the background, if it is not written."""
        again = self._pending is None
        if again and not finished:
            return
        number = self.state.epoch if self._pending is None else self._pending
        self.checkpoint.join()  # before the states of the sites are taken: one commit is outstanding, not two
        site_rounds = self.sites.save_states(number)
        state = {
            "round": number,
            "finished": finished,
            "stopped": finished and number < self.state.max_epochs,
            "strategy": self.strategy.state_dict(),
            "usual_norm": self.usual_norm.state_dict(),
            "metrics": {name: float(value) for name, value in self.state.metrics.items()},
            "handlers": {name: part.state_dict() for name, part in stateful_parts(self.handlers).items()},
            "sites": self.sites.plan.names,
            "site_rounds": site_rounds,
            "seed": self.seed,
            "threads": torch.get_num_threads(),
            "config": dict(self.run_config.values),
        }
        self.checkpoint.commit(state, self.sites.write_states, self.sites.keep_states, again)
        self._pending = None

    def _finish(self) -> None:
        """Save the last weights, test the best ones, and mark the run as finished."""
        self._commit()
        self.checkpoint.join()
        self._stage = "in the final test"
        folder = self.checkpoint.folder
        save_atomic(self.strategy.global_weights, folder.model("model_final"))
        initial = load_checked(folder.model("initial"))
        notes, failed = self.evaluations.test(self.test_sites, initial, self.state.epoch)
        self.checkpoint.notes += notes
        self._final_costs = self.sites.costs.take()
        tested = len(failed) < len(self.test_sites)
        if tested:
            self._commit(finished=True)
            self.checkpoint.join()
        folder.write_json("run.json", self._description())
        if not tested:
            reasons = "; ".join(f"{site}: {reason}" for site, reason in sorted(failed.items()))
            raise FederationError(
                f"the training is done, but the final test failed at every site. {reasons}. The models are in "
                f"'{folder.model('model_final').parent}': correct the sites and test again with --resume True."
            )

    def _description(self) -> dict[str, Any]:
        best, keys = self.checkpoint.best, self.strategy.shared_keys
        return {
            "method": self.method,
            "num_rounds": self.state.max_epochs,
            "evaluation_only": self.state.max_epochs == 0,
            "sites": self.sites.plan.names,
            "train_sites": self.train_sites,
            "test_sites": self.test_sites,
            "seed": self.seed,
            "fraction": self.fraction,
            "min_sites": self.min_sites,
            "key_metric": self.key_metric,
            "key_metric_mode": best.mode,
            "best_round": best.round(),
            "best_round_per_site": {name: number for name, (_, number) in best.records.items() if name},
            "strategy": type(self.strategy).__name__,
            "shared_keys": list(keys.patterns),
            "local_keys": list(keys.local),
            "device": str(self.state.device),
            "wire_dtype": self.sites.plan.wire_dtype,
            **({"final_test": self._final_costs} if self._final_costs else {}),
            **describe_environment(),
            "notes": self.checkpoint.notes,
        }


def attach(engine: Federation, handlers: Sequence[Any] | None = None) -> Federation:
    """Attach handlers to a federation and return it; their state becomes part of what a resumed run restores.

    In a config this is a component of its own, because a handler inside the engine's section could not refer to the
    engine.

    Raises:
        ConfigError: when something else than handlers is given.
    """
    for handler in as_list(handlers):
        if not hasattr(handler, "attach"):
            raise ConfigError(f"handlers holds {shown(handler)}, which is no handler; give a list of components.")
        handler.attach(engine)
        engine.handlers.append(handler)
    return engine


def _known(sites: Sequence[str], config_id: str, names: Sequence[str] | None) -> list[str]:
    chosen = list(sites) if names is None else sorted(dict.fromkeys(as_list(names)))
    known = set(sites)
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        what = f"names '{unknown[0]}', which is no site" if unknown else "is empty"
        raise ConfigError(f"{config_id} {what}; the sites of this federation are {', '.join(sites)}.")
    return chosen


def _check_numbers(num_rounds: int, fraction: float, min_sites: int, val_interval: int, num_sites: int) -> None:
    if num_rounds < 0:
        raise ConfigError(f"num_rounds is {num_rounds}; give 1 or more, or 0 to evaluate the weights of init_ckpt.")
    _check_share("fraction", fraction)
    if not 1 <= min_sites <= num_sites:
        raise ConfigError(
            f"min_sites is {min_sites}; give a number from 1 to the number of training sites ({num_sites})."
        )
    if val_interval < 1:
        raise ConfigError(f"val_interval is {val_interval}; give 1 or more rounds.")


def _check_share(name: str, share: float) -> None:
    if not 0 < share <= 1:
        raise ConfigError(f"{name} is {share}; give a share of the training sites, above 0 and at most 1.")
