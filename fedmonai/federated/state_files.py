# SPDX-License-Identifier: Apache-2.0
"""State files: which rounds of each site's private state lie on the disk of this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedmonai.federated.checkpoint import read_site_state
from fedmonai.federated.plan import SitePlan

__all__ = ["StateFiles"]


class StateFiles:
    """The files ``round_<n>.pt`` of the sites in a plan, as far as they were found or noted.

    Args:
        plan: says where the files lie.
    """

    def __init__(self, plan: SitePlan) -> None:
        self.plan = plan
        self._rounds: dict[str, set[int]] = {}

    def find(self) -> None:
        """Search the disk, once when a run is continued: later on every file that is written is noted."""
        self._rounds = {}
        for path in Path(self.plan.output_dir, "sites").glob("*/round_*.pt"):
            number = path.stem.rpartition("_")[2]
            if number.isdecimal():
                self.note(path.parent.name, int(number))

    def note(self, name: str, number: int) -> None:
        """Note that a site has a file of this round, or is about to."""
        self._rounds.setdefault(name, set()).add(number)

    def check(self, state_rounds: Mapping[str, int]) -> None:
        """Raise ConfigError when a state file of a commit cannot be read."""
        for name, number in state_rounds.items():
            read_site_state(self.plan.state_file(name, number))

    def keep(self, commits: Sequence[Mapping[str, int]]) -> None:
        """Delete files that none of ``commits`` refers to; only sites with more than one file are looked at."""
        for name in [name for name, rounds in list(self._rounds.items()) if len(rounds) > 1]:
            wanted = {commit[name] for commit in commits if name in commit}
            # newer ones belong to the round that is running
            newest = max(wanted, default=0)
            for number in [one for one in sorted(self._rounds[name]) if one not in wanted and one < newest]:
                self.plan.state_file(name, number).unlink(missing_ok=True)
                self._rounds[name].discard(number)
