# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a federation: the commit and the one before it, the best rounds, weights to start from."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedmonai.errors import ConfigError, first_line
from fedmonai.federated.background import Background, Snapshot
from fedmonai.federated.messages import STATE_FORMAT, FormatError, check_format
from fedmonai.federated.run_log import RunConfig, RunFolder, save_atomic
from fedmonai.io import load_checked, read_weights, sync_folder
from fedmonai.names import shown

__all__ = [
    "BestModelTracker",
    "Checkpoint",
    "changes_since",
    "check_form",
    "check_optimizer",
    "read_site_state",
    "restoring",
    "start_from",
]

logger = logging.getLogger(__name__)


_OTHER_FORMAT = "Continue with the version that wrote it, or start again in another output_dir."
_GOOD_COPY = "Put back a good copy, or start again in another output_dir."
#: name under which the mean over sites is kept beside the sites' own records
MEAN = ""


class BestModelTracker:
    """Tracker of the best value of the key metric and its round, over the mean of the sites and per site.

    Args:
        mode: ``max`` when larger is better, ``min`` otherwise.

    Example:
        >>> best = BestModelTracker("max")
        >>> best.update_mean({"A": 0.5, "B": 1.0}, round_number=1)
        True
        >>> best.update_mean({"A": 0.5, "B": 0.5}, round_number=2)
        False
        >>> best.round(), best.value()
        (1, 0.75)

    Raises:
        ConfigError: on another mode.
    """

    def __init__(self, mode: str = "max") -> None:
        if mode not in ("max", "min"):
            raise ConfigError(f"key_metric_mode is '{mode}'; choose max or min.")
        self.mode = mode
        self.records: dict[str, tuple[float, int]] = {}
        #: the sites' values in the round with the best mean
        self.values: dict[str, float] = {}

    def update_mean(self, values: Mapping[str, float], round_number: int) -> bool:
        """Note the sites' values of a round; return whether their mean is the best so far.

        Rounds are compared over the sites that both have: a round that lacks a weak site is not better for it.
        """
        common = sorted(self.values.keys() & values.keys())
        if self.values and not common:
            return False
        mean = sum(values.values()) / len(values)
        if common:
            here, best = (sum(known[name] for name in common) for known in (values, self.values))
            if math.isnan(mean) or not (here > best if self.mode == "max" else here < best):
                return False
            self.records.pop(MEAN, None)
        if not self.update(mean, round_number):
            return False
        self.values = dict(values)
        return True

    def update(self, value: float, round_number: int, site: str = MEAN) -> bool:
        """Note a value; return whether it is the best so far.

        Equal values keep the earlier round; NaN is never best.
        """
        if math.isnan(value):
            return False
        if site in self.records:
            best = self.records[site][0]
            if not (value > best if self.mode == "max" else value < best):
                return False
        self.records[site] = (value, round_number)
        return True

    def value(self, site: str = MEAN) -> float | None:
        """Best value so far."""
        return self.records[site][0] if site in self.records else None

    def round(self, site: str = MEAN) -> int | None:
        """Round of the best value so far."""
        return self.records[site][1] if site in self.records else None

    def state_dict(self) -> dict[str, Any]:
        """Plain values only."""
        records = {site: [value, number] for site, (value, number) in self.records.items()}
        return {"records": records, "values": dict(self.values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state written by :meth:`state_dict`."""
        self.records = {site: (value, number) for site, (value, number) in state["records"].items()}
        self.values = dict(state["values"])


class Checkpoint:
    """Store of a run: its folder and tables, the commits of its rounds, its best models; without the engine.

    A round is committed when ``federation.pt`` names it. The file is written last, after the state files of the sites;
    the commit before it stays as ``federation.previous.pt`` together with the site files it refers to, so a run can go
    back by one round: after a damaged file, from a state that no site can train from, or with ``resume_round``.

    A commit is written during the next round, from a snapshot. One is outstanding at most, and what it replaces is
    removed after it is on disk, so a kill at any time leaves a commit to resume from. An error while writing is raised
    by the next :meth:`join`, which is called before the next commit, before the final test and before the run goes
    back.

    Args:
        output_dir: folder of the run.
        key_metric_mode: see :class:`BestModelTracker`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as path:
        ...     store = Checkpoint(path)
        ...     store.start({"weight": torch.zeros(1)})
        ...     print(store.exists(), store.folder.model("initial").is_file())
        ...     store.folder.close()
        False True

    Raises:
        ConfigError: when the folder cannot be written, or another process is running in it.
    """

    def __init__(self, output_dir: str | Path, key_metric_mode: str = "max") -> None:
        self.best = BestModelTracker(key_metric_mode)
        self.folder = RunFolder(output_dir)
        self.path = self.folder.path / "federation.pt"
        self.previous = self.folder.path / "federation.previous.pt"
        #: notes on the run as a whole
        self.notes: list[str] = []
        self._commits: list[dict[str, int]] = []
        self._background, self._snapshot = Background(), Snapshot()
        #: name and weights of a best model that the next commit writes before its state
        self._model: tuple[str, Mapping[str, Tensor]] | None = None

    def note(self, note: str) -> None:
        """Log a note and keep it for ``run.json``."""
        self.notes.append(note)
        logger.warning(note)

    def exists(self) -> bool:
        """Whether any round was committed."""
        return self.path.exists() or self.previous.exists()

    def start(self, initial: Mapping[str, Tensor]) -> None:
        """Begin a new run with these weights."""
        self.folder.truncate(0)  # a run that died before its first commit has left rows
        save_atomic(dict(initial), self.folder.model("initial"))

    def restore(self, state: Mapping[str, Any]) -> None:
        """Reset commits, tables, notes and best rounds to a commit that was read here."""
        self.best.load_state_dict(state["best"])
        if self._is_previous(state):
            self._forget_overwritten(state["round"])
        self.folder.truncate(state["round"])
        if self._is_previous(state):
            self.previous.replace(self.path)  # else the next commit would replace it by the discarded file
            sync_folder(self.path.parent)
        self.notes = [*state["notes"], *(note for note in self.notes if note not in state["notes"])]
        self._commits = [dict(state["site_rounds"])]

    def _forget_overwritten(self, number: int) -> None:
        """Drop the best rounds whose models the newest commit, which is discarded, has overwritten."""
        try:
            newest = self._read(self.path, lambda states: None)
        except ConfigError:  # damaged: the round is done again as it was
            return
        lost = [site for site, (_, of_round) in newest["best"]["records"].items() if of_round > number]
        lost = [site for site in lost if self.best.records.pop(site, None) is not None]
        if MEAN in lost:
            self.best.values = {}
        if lost:
            names = ", ".join(site or "all sites" for site in lost)
            self.note(f"the best model before round {number + 1} was overwritten in it; chosen anew for {names}")

    def _is_previous(self, state: Mapping[str, Any]) -> bool:
        return state.get("file") == self.previous.name

    def keep_best(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Have the best model, the weights as they are when the round is committed, written with the commit."""
        self._model = (name, weights)

    def commit(
        self,
        state: Mapping[str, Any],
        write_sites: Callable[[], None],
        keep_sites: Callable[[list[dict[str, int]]], None],
        again: bool = False,
    ) -> None:
        """Commit a state of tensors and plain values, with ``round`` and ``site_rounds`` among them.

        Returns when the copy is taken: until the next :meth:`join` it is not known to be on disk.

        Args:
            state: the state; the best rounds and the notes are added to it.
            write_sites: sees that the states of the sites that ``site_rounds`` refers to are on disk.
            keep_sites: deletes all states but those that the commits on disk refer to, the newest last.
            again: for the round that was committed last. The previous commit is always of an earlier round, which a
                second commit of a round must not replace.

        Raises:
            FederationError: when the commit before it could not be written.
        """
        self.join()
        added = {"best": self.best.state_dict(), "notes": list(self.notes)}
        name, weights = self._model or ("", {})
        copied = self._snapshot.take({"state": {"format": STATE_FORMAT, **state, **added}, "model": weights})
        self._model = None

        def write() -> None:
            if name:
                save_atomic(copied["model"], self.folder.model(name))
            write_sites()
            self._write(copied["state"], again)
            if not again:
                self._commits = [*self._commits[-1:], copied["state"]["site_rounds"]]
                keep_sites(self._commits)

        self._background.start(write)

    def _write(self, state: Mapping[str, Any], again: bool) -> None:
        self.folder.sync()
        fresh = self.path.with_name("federation.new.pt")
        save_atomic(state, fresh)
        if self.path.exists() and not again:
            self.path.replace(self.previous)
        fresh.replace(self.path)
        sync_folder(self.path.parent)

    def join(self) -> None:
        """Wait until the last commit is on disk.

        Raises:
            FederationError: when it cannot be written; the commits before it are complete.
        """
        self._background.join()

    @property
    def outstanding(self) -> bool:
        """Whether a commit may be on its way to the disk."""
        return self._background.busy

    def close(self) -> None:
        """Wait for the last commit, and release the folder for other processes."""
        try:
            self._background.settle()
        finally:
            self.folder.close()

    def read(self, check_states: Callable[[Mapping[str, int]], None], wanted: int | None = None) -> dict[str, Any]:
        """The newest commit that can be read, or that of a round; what is wrong with a newer one is noted.

        Args:
            check_states: raises ConfigError when the site states of a commit, ``{site: round}``, cannot be used.
            wanted: the round; ``None`` for the newest.

        Raises:
            ConfigError: when none can, there is none of that round, or one is of another format.
        """
        kept = []
        for path in (self.path, self.previous):
            if not path.exists():
                continue
            try:
                state = self._read(path, check_states)
            except FormatError:  # not damaged: going back would lose a round without need
                raise
            except ConfigError as error:
                self.note(f"{error} The round before it is used.")
                continue
            if wanted is not None and state["round"] != wanted:
                kept.append(state["round"])
                continue
            if self._is_previous(state) and not self.notes and not kept:
                self.note(f"{self.path.name} is missing; continuing from {path.name} (round {state['round']}).")
            if kept:
                self.note(f"resume_round: round {kept[0]} is given up, continuing after round {wanted}")
            return state
        if kept:
            raise ConfigError(
                f"resume_round is {wanted}, which is not kept in '{self.path.parent}'; kept are the rounds "
                f"{', '.join(str(number) for number in sorted(kept))}."
            )
        raise ConfigError(
            f"no usable state in '{self.path.parent}': {' '.join(self.notes)} Start again in another output_dir, from "
            "the newest weights in models/ with --init_ckpt if there are any."
        )

    def read_previous(self, check_states: Callable[[Mapping[str, int]], None]) -> dict[str, Any] | None:
        """The commit before the newest one, ``None`` if there is none that can be used."""
        try:
            return self._read(self.previous, check_states) if self.previous.exists() else None
        except ConfigError as error:
            self.note(str(error))
            return None

    def _read(self, path: Path, check_states: Callable[[Mapping[str, int]], None]) -> dict[str, Any]:
        state: dict[str, Any] = load_checked(path)
        where = f"the state in '{path}'"
        check_format(where, state, STATE_FORMAT, _OTHER_FORMAT)
        check_form(where, state, _FEDERATION)
        number = state["round"]
        if any(of_site > number for of_site in state["site_rounds"].values()):
            raise ConfigError(f"{where} is damaged: it is of round {number}, states of its sites are of a later one.")
        recorded = self.folder.rounds()
        if number not in recorded and (number > 0 or recorded):  # round 0 is that of a run that only evaluates
            raise ConfigError(
                f"{where} is of round {number}, which rounds.jsonl beside it does not record; put back both files of "
                "one run."
            )
        check_states(state["site_rounds"])
        return {**state, "file": path.name}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _mapping_of(good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(isinstance(k, str) and good(v) for k, v in value.items())


def _list_of(good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(good, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _is_part(value: Any) -> bool:
    return isinstance(value, dict)


def _is_record(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and _is_number(value[0]) and _is_count(value[1])


_Forms = Mapping[str, tuple[Callable[[Any], bool], str]]
#: check and description of each part of a state; ``::`` leads into a part
_FEDERATION: _Forms = {
    "round": (lambda value: _is_count(value), "a round, or 0 where nothing was trained"),
    "finished": (_is_switch, "True or False"),
    "stopped": (_is_switch, "True or False"),
    "strategy": (_is_part, "the state of a strategy"),
    "usual_norm": (_is_part, "norms"),
    "usual_norm::largest": (_list_of(_is_number), "a list of norms"),
    "metrics": (_mapping_of(_is_number), "numbers by name"),
    "handlers": (_mapping_of(_is_part), "states by name"),
    "sites": (_list_of(_is_text), "a list of names"),
    "site_rounds": (_mapping_of(_is_count), "rounds by site"),
    "seed": (lambda value: isinstance(value, int), "a whole number"),
    "threads": (_is_count, "a whole number"),
    "config": (_mapping_of(_is_text), "values by id"),
    "notes": (_list_of(_is_text), "a list of sentences"),
    "best": (_is_part, "the best rounds"),
    "best::records": (_mapping_of(_is_record), "a value and its round by site"),
    "best::values": (_mapping_of(_is_number), "values by site"),
}
_SITE: _Forms = {
    "round": (_is_count, "a round"),
    "epoch": (_is_count, "a whole number"),
    "iteration": (_is_count, "a whole number"),
    "private": (_mapping_of(_is_tensor), "tensors by name"),
    "optimizer": (_is_part, "the state of an optimizer"),
    "optimizer::state": (_is_part, "the state of an optimizer's parameters"),
    "optimizer::param_groups": (_list_of(_is_part), "groups of parameters"),
    "handlers": (_mapping_of(_is_part), "states by name"),
}


def check_form(where: str, state: Mapping[str, Any], forms: _Forms) -> None:
    """Refuse a state with a part missing, or of another kind than it was written with.

    Raises:
        ConfigError: for the first such part.
    """
    for name, (good, what) in forms.items():
        value: Any = state
        for part in name.split("::"):
            if part not in value:
                raise ConfigError(f"{where} is damaged or not of this kind: it has no '{name}'. {_GOOD_COPY}")
            value = value[part]
        if not good(value):
            raise ConfigError(
                f"{where} is damaged or not of this kind: '{name}' is {shown(value)}, not {what}. {_GOOD_COPY}"
            )


def read_site_state(path: Path) -> dict[str, Any]:
    """A site's private state after a round, as ``round_NNNN.pt`` holds it.

    Raises:
        ConfigError: when it is damaged, a FormatError when it is of another format.
    """
    state: dict[str, Any] = load_checked(path)
    where = f"the saved state in '{path}'"
    check_format(where, state, STATE_FORMAT, _OTHER_FORMAT)
    check_form(where, state, _SITE)
    return state


@contextlib.contextmanager
def restoring(path: Path, remedy: str) -> Iterator[None]:
    """Say in one line that the parts of a run cannot take over the state in a file, which is of another configuration.

    Raises:
        FormatError: in place of what a part raises.
    """
    try:
        yield
    except ConfigError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise FormatError(
            f"the state in '{path}' does not fit this configuration ({type(error).__name__}: {first_line(error)}); "
            f"{remedy}"
        ) from error


def check_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Refuse the state of another optimizer, which torch would accept and fail with in the first step.

    Raises:
        ValueError: with the difference.
    """
    own = optimizer.state_dict()
    if [len(group.get("params", ())) for group in state["param_groups"]] != [
        len(group["params"]) for group in own["param_groups"]
    ]:
        raise ValueError("the state of its optimizer is of other parameters")
    for group in state["param_groups"]:
        if missing := sorted(optimizer.defaults.keys() - group.keys()):
            raise ValueError(f"the state of its optimizer is none of {type(optimizer).__name__}: no '{missing[0]}'")


def changes_since(state: Mapping[str, Any], names: Sequence[str], seed: int, config: RunConfig) -> Iterator[str]:
    """Notes on what is different from when a state was committed: sites, seed, threads, ids of the config."""
    number = state["round"]
    added, removed = sorted(set(names) - set(state["sites"])), sorted(set(state["sites"]) - set(names))
    if added:
        yield f"new since round {number}: {', '.join(added)} (global weights, fresh private state)"
    if removed:
        yield f"no longer in the federation: {', '.join(removed)} (their folders stay as they are)"
    if state["seed"] != seed:
        yield f"the seed was {state['seed']}, is {seed}: later rounds differ from the first run"
    if state["threads"] != torch.get_num_threads():
        yield f"{state['threads']} threads before, {torch.get_num_threads()} now: sums may differ in the last bits"
    for change in config.changes(state["config"]):
        yield f"changed after round {number}: {change}"


def start_from(path: str | Path, fresh: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Replace freshly drawn weights by those of a file where name and shape agree.

    Returns:
        the weights, and a sentence that says how many of them came from the file.

    Raises:
        ConfigError: when not a single tensor fits.
    """
    given = read_weights(path, "init_ckpt")
    fits = {k for k, t in given.items() if k in fresh and fresh[k].shape == t.shape}
    if not fits:
        raise ConfigError(
            f"init_ckpt '{path}': none of its {len(given)} tensors fits the network (the file has "
            f"'{next(iter(given))}', the network '{next(iter(fresh))}'); give weights of the same network."
        )
    misshapen = sorted(k for k in given if k in fresh and k not in fits)
    left = len(fresh) - len(fits)
    note = f"init_ckpt: {len(fits)} of {len(fresh)} tensors taken from '{path}'"
    note += f", {left} freshly drawn" if left else " (full match)"
    note += f", {len(set(given) - set(fresh))} of the file unused" if set(given) - set(fresh) else ""
    note += f", shapes differ for {', '.join(misshapen[:3])}" if misshapen else ""
    logger.info(note)
    return {k: (given[k].to(t) if k in fits else t) for k, t in fresh.items()}, note
