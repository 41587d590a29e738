# SPDX-License-Identifier: Apache-2.0
"""The state of a federation on disk: one file is the commit, and the one before it stays as a way back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from fedmonai.errors import ConfigError
from fedmonai.federated.run_folder import RunFolder, load_checked, save_atomic

__all__ = ["CommitLog"]

logger = logging.getLogger(__name__)


class CommitLog:
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
