# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a federation: the commit and the one before it, the best rounds, weights to start from."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.messages import STATE_FORMAT, FormatError, check_format
from fedmonai.federated.run_log import RunFolder, save_atomic
from fedmonai.io import load_checked, read_weights, sync_folder

__all__ = ["BestModelTracker", "Checkpoint", "changes_since", "start_from"]

logger = logging.getLogger(__name__)


_OTHER_FORMAT = "Continue with the version that wrote it, or start again in another output_dir."
#: name under which the mean over sites is kept beside the sites' own records
MEAN = ""


class BestModelTracker:
    """Remembers the best value of the key metric and its round, over the mean of the sites and per site.

    Args:
        mode: ``max`` when larger is better, ``min`` otherwise.

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
    """Store of a run: its folder and tables, the commits of its rounds, its best models. It knows no engine.

    A round is committed when ``federation.pt`` names it. The file is written last, after the state files of the sites;
    the commit before it stays as ``federation.previous.pt`` together with the site files it refers to, so a damaged
    newest file costs one round.

    Args:
        output_dir: folder of the run.
        key_metric_mode: see :class:`BestModelTracker`.

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
        """Take tables and best rounds back to a commit."""
        self.folder.truncate(state["round"])
        self.best.load_state_dict(state["best"])
        self._commits = [dict(state["site_rounds"])]

    def commit(self, state: Mapping[str, Any], again: bool = False) -> list[dict[str, int]]:
        """Commit a state of tensors and plain values, with ``round`` and ``site_rounds`` among them.

        Args:
            state: the state; the best rounds are added to it.
            again: for the round that was committed last. The way back is always an earlier round: a second commit of a
                round must not push it out.

        Returns:
            the rounds of the sites' states that the commits on disk refer to, the newest last.
        """
        fresh = self.path.with_name("federation.new.pt")
        save_atomic({"format": STATE_FORMAT, **state, "best": self.best.state_dict()}, fresh)
        if self.path.exists() and not again:
            self.path.replace(self.previous)
        fresh.replace(self.path)
        sync_folder(self.path.parent)
        if not again:
            self._commits = [*self._commits[-1:], dict(state["site_rounds"])]
        return self._commits

    def read(self, check_states: Callable[[Mapping[str, int]], None]) -> dict[str, Any]:
        """The newest commit that can be read; what is wrong with a newer one is noted.

        Args:
            check_states: raises ConfigError when the site states of a commit, ``{site: round}``, cannot be used.

        Raises:
            ConfigError: when none can, or one is of another format.
        """
        for path in (self.path, self.previous):
            if not path.exists():
                continue
            try:
                state: dict[str, Any] = load_checked(path)
                check_format(f"the state in '{path}'", state, STATE_FORMAT, _OTHER_FORMAT)
                check_states(state["site_rounds"])
            except FormatError:  # whole, so a way back to an earlier round would lose one for nothing
                raise
            except ConfigError as error:
                self.note(f"{error} The round before it is used.")
                continue
            if path == self.previous:
                if not self.notes:
                    self.notes.append(
                        f"{self.path.name} is missing; continuing from {path.name} (round {state['round']})."
                    )
                path.replace(self.path)  # else the next commit would put the damaged file in place of the good one
            return state
        raise ConfigError(
            f"no usable state in '{self.path.parent}': {' '.join(self.notes)} Start again in another output_dir, from "
            "the newest weights in models/ with --init_ckpt if there are any."
        )


def changes_since(state: Mapping[str, Any], names: Sequence[str], seed: int) -> Iterator[str]:
    """Notes on what is different from when a state was committed: sites, seed, threads."""
    added, removed = sorted(set(names) - set(state["sites"])), sorted(set(state["sites"]) - set(names))
    if added:
        yield f"new since round {state['round']}: {', '.join(added)} (global weights, fresh private state)"
    if removed:
        yield f"no longer in the federation: {', '.join(removed)} (their folders stay as they are)"
    if state["seed"] != seed:
        yield f"the seed was {state['seed']}, is {seed}: later rounds differ from the first run"
    if state["threads"] != torch.get_num_threads():
        yield f"{state['threads']} threads before, {torch.get_num_threads()} now: sums may differ in the last bits"


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
