# SPDX-License-Identifier: Apache-2.0
"""Handle of a worker process: starts it, sends it calls, takes its replies, ends it."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from fedmonai.errors import FederationError
from fedmonai.federated.shared_tensors import SharedTensors
from fedmonai.federated.site_worker import GRACE

__all__ = ["WorkerProcess"]

#: seconds between two checks of a process that sends nothing
_LOOK = 1.0
#: start of a process: it takes over the search path of this one, so that it finds the same modules
_BEGIN = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from importlib import import_module; "
    "import_module(sys.argv[2]).main(*map(int, sys.argv[3:]))"
)


class WorkerProcess:
    """A worker process of :class:`~fedmonai.federated.process_pool.ProcessPool`; it may be started again.

    It runs in a separate session, so that Ctrl-C reaches only the process that started it; when that one ends, for
    whatever reason, the connection breaks and the worker ends, too.

    Args:
        index: its number, from 1.
        sites: names of its sites.
        device: of its sites; ``None`` leaves it to their plan.
    """

    def __init__(self, index: int, sites: Sequence[str], device: str | None = None) -> None:
        self.index, self.sites, self.device = index, list(sites), device
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Connection | None = None
        self._replies: dict[int, dict[str, Any]] = {}
        self._last = self._begun = 0
        self._lock = threading.Lock()
        #: how it has ended
        self.status = "not started"

    @property
    def running(self) -> bool:
        """Whether it was started and has not been found to have ended."""
        return self._process is not None

    @property
    def process(self) -> int | None:
        """Its process id."""
        return None if self._process is None else self._process.pid

    def has_ended(self) -> bool:
        """Whether it was started and has ended since."""
        return self._process is not None and self._process.poll() is not None

    def start(self, program: str, incoming: SharedTensors, setup: Mapping[str, Any], threads: int) -> None:
        """Start it; its first reply takes seconds.

        Raises:
            FederationError: when the operating system cannot start a process.
        """
        #: where it places tensors
        self.outgoing = SharedTensors()  # tensors of the process before it may still be in use
        link, other = multiprocessing.Pipe()
        descriptors = (other.fileno(), incoming.descriptor, self.outgoing.descriptor)
        words = [sys.executable, "-c", _BEGIN, json.dumps(sys.path), program, *map(str, descriptors)]
        try:
            self._process = subprocess.Popen(  # noqa: S603 (our own module)
                words,
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a component prints belongs to the log
                pass_fds=descriptors,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                start_new_session=True,
            )
        except OSError as error:
            raise FederationError(
                f"worker {self.index} cannot be started ({error.strerror}); take fewer workers."
            ) from error
        finally:
            other.close()
        self._replies, self._begun = {}, self._last
        with contextlib.suppress(OSError):
            link.send_bytes(json.dumps(setup).encode())
        self._link = link

    def call(self, method: str, arguments: Mapping[str, Any], reply: bool = True, **sent: Any) -> int:
        """Send a call without waiting; return the number under which the reply comes.

        Two threads may call at the same time; replies are for one of them.
        """
        with self._lock:
            self._last += 1
            number = self._last
            self._send({"number": number if reply else None, "method": method, "arguments": arguments, **sent})
        return number

    def _send(self, content: Mapping[str, Any]) -> None:
        if self._link is not None:
            with contextlib.suppress(OSError):  # its end is noticed when a reply is missing
                self._link.send_bytes(json.dumps(content).encode())

    def reply(self, number: int) -> dict[str, Any] | None:
        """The reply to a call, ``None`` when the process that was asked has ended."""
        while number not in self._replies:
            reply = self._received() if number > self._begun else None
            if reply is None:
                return None
            if reply["number"] is None:  # it cannot begin, so that every call has the same reply
                return reply
            self._replies[reply["number"]] = reply
        return self._replies.pop(number)

    def _received(self) -> dict[str, Any] | None:
        link, process = self._link, self._process
        if link is None or process is None:
            return None
        try:
            # the end of a process closes the connection, unless its own children hold it, too
            while not link.poll(_LOOK):
                if process.poll() is not None and not link.poll(0):
                    return None
            found: dict[str, Any] = json.loads(link.recv_bytes())
        except (EOFError, OSError):
            return None
        return found

    def release(self) -> None:
        """Close the connection, so that it ends."""
        with self._lock:
            if self._link is not None:
                self._link.close()
                self._link = None

    def end(self) -> None:
        """End it, by force if it does not end by itself."""
        self.release()
        process, self._process = self._process, None
        if process is None:
            return
        try:
            code = process.wait(GRACE + 1)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        self.outgoing.close()
        self.status = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
