# SPDX-License-Identifier: Apache-2.0
"""Interruption of a program by Ctrl-C or SIGTERM: it ends with one line that says how to go on, without a traceback."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["announced", "end_in_one_line"]

#: descriptions of the work in progress, innermost last; each returns the line for an interruption
_work: list[Callable[[], str]] = []


@contextlib.contextmanager
def announced(describe: Callable[[], str]) -> Iterator[None]:
    """Print what ``describe`` returns as the line of an interruption in the block."""
    _work.append(describe)
    try:
        yield
    finally:
        _work.remove(describe)


def end_in_one_line() -> None:
    """Let Ctrl-C and SIGTERM end this process in one line, with the exit codes of a shell: 130 and 143.

    For command lines: the handlers apply to the whole process. The work in progress is unwound, so that unfinished
    files are removed and folders released; a second signal ends the process at once. Outside of the main thread, where
    Python handles no signals, nothing is done.
    """
    if threading.current_thread() is threading.main_thread():
        owner = os.getpid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda found, frame: _end(found, frame, owner))


def _end(number: int, frame: FrameType | None, owner: int) -> None:
    if os.getpid() != owner:  # a forked worker; its parent prints the line
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    code = 128 + number
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, lambda *_: os._exit(code))
    name = signal.Signals(number).name
    try:
        line = _work[-1]() if _work else "stopped."
    except Exception:  # the object that describes itself may be incomplete
        line = "stopped."
    # not by print: the signal may have come in the middle of one
    os.write(2, f"\n{name}: {line}\n".encode())
    logging.disable(logging.CRITICAL)  # each engine would log its end with a traceback
    raise SystemExit(code)
