# SPDX-License-Identifier: Apache-2.0
"""What a federated run keeps: its folder, the committed state, the best round, the metrics of every evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.checkpoint import BestModelTracker, Checkpoint, start_from
from fedmonai.federated.evaluation import Evaluations
from fedmonai.federated.local_training import load_stateful, stateful_parts
from fedmonai.federated.run_log import RoundRecord, RunFolder, describe_environment, save_atomic
from fedmonai.federated.validation import InvalidUpdate
from fedmonai.io import load_checked

if TYPE_CHECKING:
    from fedmonai.federated.federation import Federation

__all__ = ["Run"]

logger = logging.getLogger(__name__)


class Run:
    """Everything about a federated run that outlives a round.

    Args:
        federation: the engine whose state is kept.
        output_dir: folder of the run.
        key_metric: validation metric that chooses the best round.
        key_metric_mode: ``max`` or ``min``.
        resume: continue the run in the folder.
        init_ckpt: file of weights to start from.
        method: name of the method.
    """

    def __init__(
        self,
        federation: Federation,
        output_dir: str,
        key_metric: str,
        key_metric_mode: str,
        resume: bool,
        init_ckpt: str | None,
        method: str,
    ) -> None:
        self.federation = federation
        self.key_metric = key_metric
        self.resume = resume
        self.init_ckpt = init_ckpt
        self.method = method
        self.best = BestModelTracker(key_metric_mode)
        self.folder = RunFolder(output_dir)
        self.log = Checkpoint(self.folder, federation.sites.check_states)
        self.evaluations = Evaluations(federation.sites, federation.strategy, self.folder, self.best, key_metric)
        self.notes: list[str] = []
        self._pending: int | None = None
        self._handler_states: dict[str, Any] | None = None
        self._committed: list[dict[str, int]] = []
        state = federation.state
        state.key_metric_name = f"val_{key_metric}"

    def prepare(self) -> bool:
        """Build the sites, draw or load the weights; return whether there is anything left to do."""
        if self.log.exists() and not self.resume:
            raise ConfigError(
                f"output_dir '{self.folder.path}' already holds a run; continue it with --resume True, or choose "
                "another --output_dir."
            )
        state, notes = self.log.read() if self.log.exists() else (None, [])
        self.notes += notes
        if state is not None:
            if not self._has_work(state):
                return False
            self.federation.sites.state_rounds = self._known_states(state)
        initial = self._open_sites()
        if state is None:
            self._start(initial)
        else:
            self._continue(state)
        self.folder.write_json("run.json", self._description())
        return True

    def _has_work(self, state: dict[str, Any]) -> bool:
        done, wanted = state["round"], self.federation.state.max_epochs
        if not state["finished"] or (done < wanted and not state["stopped"]):
            return True
        why = "was stopped early by a handler" if state["stopped"] else "is finished"
        logger.warning(
            "the run in '%s' %s (round %d of %d); nothing is done. For more rounds raise num_rounds.",
            self.folder.path,
            why,
            done,
            wanted,
        )
        return False

    def _known_states(self, state: dict[str, Any]) -> dict[str, int]:
        sites = self.federation.sites
        before = set(state["sites"])
        added, removed = sorted(set(sites.names) - before), sorted(before - set(sites.names))
        if added:
            self._say(f"new since round {state['round']}: {', '.join(added)} (global weights, fresh private state)")
        if removed:
            self._say(f"no longer in the federation: {', '.join(removed)} (their folders stay as they are)")
        if state["seed"] != self.federation.seed:
            self._say(
                f"the seed was {state['seed']}, is {self.federation.seed}: later rounds differ from the first run"
            )
        if state["threads"] != torch.get_num_threads():
            self._say(
                f"{state['threads']} threads before, {torch.get_num_threads()} now: sums may differ in the last bits"
            )
        return {name: number for name, number in state["site_rounds"].items() if name in sites.specs}

    def _say(self, note: str) -> None:
        self.notes.append(note)
        logger.warning(note)

    def _open_sites(self) -> dict[str, Tensor]:
        """Open every site once, so that a mistake in any of them ends the run before the first round."""
        sites, strategy = self.federation.sites, self.federation.strategy
        weights: dict[str, Tensor] = {}
        for name in sites.names:
            structure = sites.structure(name)
            if structure is None:
                continue
            try:
                if not weights:
                    weights = sites.initial_weights(name)
                    strategy.initialize(weights)
                    self.federation.guard.check_weights(strategy.global_weights, strategy.global_weights)
                self.federation.guard.check_structure(structure, strategy.global_weights)
            except InvalidUpdate as error:
                raise ConfigError(
                    f"site '{name}' has another network than site '{sites.names[0]}': {error}. What is shared "
                    "must be the same at all sites; make it private with local_keys or give the sites the same network."
                ) from error
        return weights

    def _start(self, initial: dict[str, Tensor]) -> None:
        self.folder.truncate(0)  # a run that died before its first commit has left rows
        if self.init_ckpt:
            initial, note = start_from(self.init_ckpt, initial)
            self.notes.append(note)
            self.federation.strategy.initialize(initial)
        save_atomic(initial, self.folder.model("initial"))

    def _continue(self, state: dict[str, Any]) -> None:
        federation = self.federation
        self.folder.truncate(state["round"])
        federation.strategy.load_state_dict(state["strategy"])
        federation.strategy.forget(set(state["sites"]) - set(federation.sites.names))
        self.best.load_state_dict(state["best"])
        self._committed = [dict(state["site_rounds"])]
        engine = federation.state
        engine.epoch = state["round"]
        engine.iteration = state["round"] * engine.epoch_length
        engine.metrics = dict(state["metrics"])
        self._show_best()
        self._handler_states = state["handlers"]
        logger.info("continuing after round %d of %d", state["round"], engine.max_epochs)

    def restore_handlers(self) -> None:
        """Give the attached handlers the state they had at the last commit."""
        if self._handler_states is None:
            return
        unmatched = load_stateful(stateful_parts(self.federation.handlers), self._handler_states)
        self._handler_states = None
        if unmatched:
            self._say(f"handlers changed since the first run, fresh state for: {', '.join(unmatched)}")

    def record_round(self, record: RoundRecord, validate: bool) -> None:
        """Write down a round that was aggregated; validate it if it is due. The commit follows after all handlers."""
        number = record.number
        sites = self.federation.sites
        rows, metrics = [], {}
        for name, values in {"loss": record.loss, **record.train_metrics}.items():
            rows += [_row(number, site, "global", "train", name, value) for site, value in sorted(values.items())]
            metrics.update(_summary(f"train_{name}", values))
        if validate:
            found, failed = self.evaluations.validate(number, self.federation.train_sites)
            record.notes += failed
            for metric, values in found.items():
                metrics.update(_summary(f"val_{metric}", values))
            self._show_best()
        record.notes += sites.notes
        sites.notes = []
        self.federation.state.metrics = {**self.federation.state.metrics, **metrics}
        self.folder.add_metrics(rows)
        self.folder.add_round(
            record.as_dict(evaluated=validate, best_round=self.best.round(), best_metric=self.best.value())
        )
        self._pending = number

    def _show_best(self) -> None:
        state = self.federation.state
        if self.best.value() is not None:
            state.best_metric, state.best_metric_epoch = self.best.value(), self.best.round()

    def commit(self, finished: bool = False) -> None:
        """Write the state of the round that was recorded last, if it is not on disk yet."""
        if self._pending is None and not finished:
            return
        federation = self.federation
        again = self._pending is None
        number = self._pending if self._pending is not None else federation.state.epoch
        federation.sites.save(number)
        site_rounds = dict(federation.sites.state_rounds)
        self.log.write(
            {
                "round": number,
                "finished": finished,
                "stopped": finished and number < federation.state.max_epochs,
                "strategy": federation.strategy.state_dict(),
                "best": self.best.state_dict(),
                "metrics": {k: float(v) for k, v in federation.state.metrics.items()},
                "handlers": {n: p.state_dict() for n, p in stateful_parts(federation.handlers).items()},
                "sites": federation.sites.names,
                "site_rounds": site_rounds,
                "seed": federation.seed,
                "threads": torch.get_num_threads(),
            },
            again,
        )
        if not again:
            self._committed = [*self._committed[-1:], site_rounds]
            federation.sites.remove_states(self._committed)
        self._pending = None

    def finish(self) -> None:
        """Save the last weights, test the best ones, and mark the run as finished."""
        save_atomic(self.federation.strategy.global_weights, self.folder.model("model_final"))
        initial = load_checked(self.folder.model("initial"))
        self.notes += self.evaluations.test(self.federation.test_sites, initial, self.federation.state.epoch)
        self.commit(finished=True)
        self.folder.write_json("run.json", self._description())

    def _description(self) -> dict[str, Any]:
        federation = self.federation
        return {
            "method": self.method,
            "num_rounds": federation.state.max_epochs,
            "sites": federation.sites.names,
            "train_sites": federation.train_sites,
            "test_sites": federation.test_sites,
            "seed": federation.seed,
            "fraction": federation.fraction,
            "min_sites": federation.min_sites,
            "key_metric": self.key_metric,
            "key_metric_mode": self.best.mode,
            "best_round": self.best.round(),
            "best_round_per_site": {name: number for name, (_, number) in self.best.records.items() if name},
            "strategy": type(federation.strategy).__name__,
            "shared_keys": list(federation.strategy.shared_keys.patterns),
            "local_keys": list(federation.strategy.shared_keys.local),
            "device": str(federation.state.device),
            **describe_environment(),
            "notes": self.notes,
        }


def _row(number: int, site: str, model: str, split: str, metric: str, value: float) -> dict[str, Any]:
    return {"round": number, "site": site, "model": model, "split": split, "metric": metric, "value": value}


def _summary(name: str, values: dict[str, float]) -> dict[str, float]:
    mean = _mean(values.values())
    return {name: mean, **{f"{name}_{site}": value for site, value in values.items()}}


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else math.nan
