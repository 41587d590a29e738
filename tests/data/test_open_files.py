# SPDX-License-Identifier: Apache-2.0
"""Open files: least recently used goes first, and no handle crosses into another process."""

from __future__ import annotations

import os
import pickle

from fedmonai.data.cache import OpenFiles

CLOSED: list[str] = []


def _open(path: str) -> list[str]:
    return [path, str(os.getpid())]


def _close(handle: list[str]) -> None:
    CLOSED.append(handle[0])


def test_least_recently_used_is_closed():
    CLOSED.clear()
    files = OpenFiles(_open, _close, capacity=2)
    handles = [files.read(path, lambda handle: handle) for path in "abac"]
    assert handles[0] is handles[2]
    assert CLOSED == ["b"] and len(files) == 2
    assert files.read("a", lambda handle: handle) is handles[0]


def test_pickled_copy_starts_empty():
    files = OpenFiles(_open, _close, capacity=2)
    files.read("a", len)
    copy = pickle.loads(pickle.dumps(files))  # noqa: S301
    assert (len(files), len(copy)) == (1, 0) and copy.capacity == 2


def test_forked_process_opens_its_own():
    files = OpenFiles(_open, _close)
    assert files.read("a", lambda handle: handle[1]) == str(os.getpid())
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        own = len(files) == 0 and files.read("a", lambda handle: handle[1]) == str(os.getpid())
        os.write(write_end, b"1" if own else b"0")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read_end, 1) == b"1"
    assert len(files) == 1
    os.close(read_end)
    os.close(write_end)
