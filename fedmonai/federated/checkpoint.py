# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a federation: the commit and the one before it, the best rounds, weights to start from."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.run_log import RunFolder, save_atomic
from fedmonai.io import load_checked, read_weights, sync_folder

__all__ = ["BestModelTracker", "Checkpoint", "start_from"]

logger = logging.getLogger(__name__)


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
    """Reads and writes ``federation.pt``.

    A round is committed when ``federation.pt`` names it. The file is written last, after the state files of the sites;
    the commit before it stays as ``federation.previous.pt`` together with the site files it refers to, so a damaged
    newest file costs one round.

    Args:
        folder: the run's folder.
        check_states: raises ConfigError when the site states of a commit, ``{site: round}``, cannot be used.
    """

    def __init__(self, folder: RunFolder, check_states: Callable[[Mapping[str, int]], None]) -> None:
        self.check_states = check_states
        self.path = folder.path / "federation.pt"
        self.previous = folder.path / "federation.previous.pt"

    def exists(self) -> bool:
        """Whether any round was committed."""
        return self.path.exists() or self.previous.exists()

    def write(self, state: Mapping[str, Any], again: bool = False) -> None:
        """Commit a state of tensors and plain values; ``again`` is for the round that was committed last.

        The way back is always an earlier round: a second commit of a round must not push it out.
        """
        fresh = self.path.with_name("federation.new.pt")
        save_atomic(dict(state), fresh)
        if self.path.exists() and not again:
            self.path.replace(self.previous)
        fresh.replace(self.path)
        sync_folder(self.path.parent)

    def read(self) -> tuple[dict[str, Any], list[str]]:
        """The newest commit that can be read, and what there is to say about it.

        Raises:
            ConfigError: when neither file can be read.
        """
        notes: list[str] = []
        for path in (self.path, self.previous):
            if not path.exists():
                continue
            try:
                state = load_checked(path)
                self.check_states(state["site_rounds"])
            except ConfigError as error:
                notes.append(f"{error} The round before it is used.")
                logger.warning(notes[-1])
                continue
            if path == self.previous:
                if not notes:
                    notes.append(f"{self.path.name} is missing; continuing from {path.name} (round {state['round']}).")
                path.replace(self.path)  # else the next commit would put the damaged file in place of the good one
            return state, notes
        raise ConfigError(
            f"no usable state in '{self.path.parent}': {' '.join(notes)} Start again in another output_dir, from the "
            "newest weights in models/ with --init_ckpt if there are any."
        )


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
