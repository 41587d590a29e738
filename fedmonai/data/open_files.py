# SPDX-License-Identifier: Apache-2.0
"""A few files kept open per process."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Handle = TypeVar("Handle")


class OpenFiles(Generic[Handle]):
    """The ``capacity`` most recently used handles, opened on demand.

    A loader worker is a copy of the process that made the dataset. Handles never cross that border: a new process
    (by fork or by pickling) starts with none and opens its own, so that no HDF5 state is shared between processes.

    Args:
        opener: makes a handle from a path.
        close: ends a handle; called for the least recently used one when ``capacity`` is exceeded.
        capacity: at least 1; one volume's slices are read in a row by an unshuffled loader, hence few suffice there.
    """

    def __init__(self, opener: Callable[[str], Handle], close: Callable[[Handle], Any], capacity: int = 16) -> None:
        self.opener = opener
        self.close = close
        self.capacity = max(1, capacity)
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._handles: OrderedDict[str, Handle] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str, reader: Callable[[Handle], Any]) -> Any:
        """Return ``reader(handle of path)``; the handle cannot be closed by another thread meanwhile."""
        if self._process != os.getpid():
            self._reset()
        with self._lock:
            handle = self._handles.pop(path, None)
            if handle is None:
                handle = self.opener(path)
            self._handles[path] = handle
            while len(self._handles) > self.capacity:
                self.close(self._handles.popitem(last=False)[1])
            return reader(handle)

    def __len__(self) -> int:
        """Number of handles open in this process."""
        return len(self._handles) if self._process == os.getpid() else 0

    def __getstate__(self) -> dict[str, Any]:
        return {"opener": self.opener, "close": self.close, "capacity": self.capacity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()
