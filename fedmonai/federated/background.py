# SPDX-License-Identifier: Apache-2.0
"""Background work: one task at a time in a separate thread, on a snapshot that the round cannot change."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["Background", "Snapshot"]

logger = logging.getLogger(__name__)


class Background:
    """Background task in a separate thread; its failure is raised where the caller waits for it.

    Example:
        >>> background, done = Background(), []
        >>> background.start(lambda: done.append("written"))
        >>> background.join()
        >>> done
        ['written']
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether work is under way, or has ended and was not waited for."""
        return self._thread is not None

    def start(self, work: Callable[[], None]) -> None:
        """Start the next task after the one before it is done.

        Raises:
            Exception: whatever stopped the one before it.
        """
        self.join()

        def watched() -> None:
            try:
                work()
            except BaseException as error:
                self._failure = error

        # not a daemon: the interpreter waits for it at its end
        self._thread = threading.Thread(target=watched, name="fedmonai-commit")
        self._thread.start()

    def join(self) -> None:
        """Wait for the work.

        Raises:
            Exception: whatever stopped it; raised once.
        """
        if self._thread is None:
            return
        self._thread.join()  # a signal may end the waiting; the work is then still waited for by the next call
        self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def settle(self) -> None:
        """Wait for the work while another error is being raised; an error of the work itself is logged."""
        try:
            self.join()
        except Exception as error:
            logger.error("%s", error)


class Snapshot:
    """Copies of states of tensors and plain values on the CPU; the memory of one is used for the next.

    A tensor that occurs in a state more than once is copied once.

    Example:
        >>> snapshot, weights = Snapshot(), {"weight": torch.zeros(2)}
        >>> first = snapshot.take({"round": 1, "strategy": weights})
        >>> _ = weights["weight"].fill_(1)
        >>> first
        {'round': 1, 'strategy': {'weight': tensor([0., 0.])}}
    """

    def __init__(self) -> None:
        self._held: dict[tuple[Any, ...], Tensor] = {}

    @torch.no_grad()
    def take(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of ``state``; what was taken before is overwritten by it."""
        before, self._held = self._held, {}
        sources: list[Tensor] = []
        targets: dict[int, Tensor] = {}

        def copied(value: Any, path: tuple[Any, ...]) -> Any:
            if isinstance(value, Tensor):
                if id(value) not in targets:
                    target = before.get(path)
                    if target is None or not _alike(target, value):
                        target = torch.empty_like(value, device="cpu", requires_grad=False)
                    targets[id(value)] = self._held[path] = target
                    sources.append(value.detach())
                return targets[id(value)]
            if isinstance(value, Mapping):
                return {key: copied(inner, (*path, key)) for key, inner in value.items()}
            if type(value) in (list, tuple):
                return type(value)(copied(inner, (*path, index)) for index, inner in enumerate(value))
            return copy.deepcopy(value)

        found: dict[str, Any] = copied(state, ())
        if sources:
            torch._foreach_copy_(list(targets.values()), sources)
        return found


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
