# SPDX-License-Identifier: Apache-2.0
"""Spanning trees on a CPU in one small compiled kernel, built where there is a C compiler; equal to numpy's to the bit.

The kernel (``tree_kernel.c``) is built when a tree is first asked for, never at import, and kept in the user's cache
(``XDG_CACHE_HOME`` or ``~/.cache``, folder ``fedmonai``, for this user alone) under a name made from its source.
Without a compiler, or with ``FEDMONAI_TREE_KERNEL=0`` in the environment, the work is done by
:mod:`fedmonai.losses.spanning_tree_cpu`.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fedmonai.io import atomic_path, refuse_of_others, user_cache

__all__ = ["TreeOrder", "kernel", "rooted_trees", "spanning_trees", "tree_sums"]

logger = logging.getLogger(__name__)
SOURCE = Path(__file__).with_suffix(".c")
#: no fused multiply-adds, which round once where numpy rounds twice
FLAGS = ("-O3", "-std=c99", "-ffp-contract=off", "-fPIC", "-shared")


@dataclass(frozen=True)
class TreeOrder:
    """Every tree in breadth-first order by itself.

    Args:
        order: int32 ``(T, n)``, the pixel at each position.
        above: int32 ``(T, n)``, the position of its parent.
    """

    order: np.ndarray
    above: np.ndarray


@cache
def kernel() -> ctypes.CDLL | None:
    """The kernel, built if necessary; ``None`` where it is not available; the reason is logged."""
    if os.environ.get("FEDMONAI_TREE_KERNEL") == "0":
        return None
    try:
        return ctypes.CDLL(str(_library()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        logger.warning("spanning trees are computed by numpy, which takes longer: %s", error)
        return None


def _library() -> Path:
    source = SOURCE.read_bytes()
    identity = b"\x1f".join([source, *(flag.encode() for flag in FLAGS), platform.machine().encode()])
    path = user_cache() / f"tree_kernel_{hashlib.sha256(identity).hexdigest()[:16]}.so"
    if not path.is_file():
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise RuntimeError("there is no C compiler (cc, gcc or clang)")
        with atomic_path(path, error=OSError, private=True) as part:
            command = [compiler, *FLAGS, str(SOURCE), "-o", str(part)]
            built = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
            if built.returncode:
                raise RuntimeError(f"{compiler} cannot build {SOURCE.name}: {built.stderr.strip()[:200]}")
            part.chmod(0o600)  # a linker creates its file again
        logger.info("built the kernel of the spanning trees: %s", path)
    refuse_of_others(path)
    return path


def _shared_out(work: Callable[[slice], Any], trees: int, threads: int) -> list[Any]:
    """Results of ``work`` on all trees, in ranges of them, one for each thread."""
    count = max(1, min(threads, trees))
    bounds = [trees * part // count for part in range(count + 1)]
    parts = [slice(begin, end) for begin, end in pairwise(bounds)]
    if count == 1:
        return [work(parts[0])]
    with ThreadPoolExecutor(count) as pool:  # a call of the kernel releases Python's global lock
        return list(pool.map(work, parts))


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def spanning_trees(library: Any, costs: np.ndarray, height: int, width: int, threads: int = 1) -> np.ndarray:
    """As :func:`~fedmonai.losses.spanning_tree_cpu.compiled_spanning_trees`; costs are float32 or float64."""
    wide = costs.dtype == np.float64
    costs = np.abs(np.ascontiguousarray(costs, None if wide else np.float32))  # minus zero is zero
    in_tree = np.zeros(costs.shape, dtype=bool)

    def work(part: slice) -> int:
        own, marks = costs[part], in_tree[part]
        sizes = ctypes.c_int64(len(own)), ctypes.c_int32(height), ctypes.c_int32(width)
        return library.spanning_trees(_pointer(own), _pointer(marks), *sizes, ctypes.c_int(wide))

    if in_tree.size and not all(_shared_out(work, len(costs), threads)):
        raise MemoryError(f"no memory for the spanning tree of {height} x {width} pixels")
    return in_tree


def rooted_trees(library: Any, in_tree: np.ndarray, height: int, width: int, root: int) -> tuple[np.ndarray, TreeOrder]:
    """Parents ``(T, H W)`` int64 and the breadth-first order, children in the order up, left, right, down."""
    in_tree = np.ascontiguousarray(in_tree, dtype=bool)
    shape = (len(in_tree), height * width)
    parent, order, above = np.empty(shape, np.int64), np.empty(shape, np.int32), np.empty(shape, np.int32)
    sizes = ctypes.c_int64(shape[0]), ctypes.c_int32(height), ctypes.c_int32(width), ctypes.c_int32(root)
    library.root_trees(_pointer(in_tree), *sizes, _pointer(parent), _pointer(order), _pointer(above))
    return parent, TreeOrder(order, above)


def tree_sums(
    library: Any, values: np.ndarray, weight: np.ndarray, levels: TreeOrder, threads: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Sums below each node and over its whole tree, of rows ``(T n, C)`` with weights ``(T n, 1)`` of the same type."""
    trees, pixels = levels.order.shape
    values, weight = np.ascontiguousarray(values), np.ascontiguousarray(weight, dtype=values.dtype)
    below, total = np.empty_like(values), np.empty_like(values)
    function = {"float32": library.sums_of_floats, "float64": library.sums_of_doubles}[values.dtype.name]

    def work(part: slice) -> None:
        rows = slice(part.start * pixels, part.stop * pixels)
        inputs = (values[rows], weight[rows], levels.order[part], levels.above[part])
        sizes = ctypes.c_int64(part.stop - part.start), ctypes.c_int32(pixels), ctypes.c_int32(values.shape[1])
        function(*map(_pointer, inputs), *sizes, _pointer(below[rows]), _pointer(total[rows]))

    _shared_out(work, trees, threads)
    return below, total
