# SPDX-License-Identifier: Apache-2.0
"""Measuring side by side: interleaved repeats, wall and CPU seconds, memory, the machine, a file of results.

Functions that all benchmarks share. A benchmark is a program with ``main(arguments=None)`` and the options of a toy
run in ``SMOKE`` (``{folder}`` in them is an empty folder); the test of all benchmarks finds them by that.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch


@dataclass
class Times:
    """Wall and CPU seconds (of all threads of this process) of every repeat."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the block as one repeat."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)

    def drop(self, first: int) -> None:
        """Leave out the first repeats, which warm up."""
        del self.wall[:first], self.cpu[:first]

    def as_dict(self) -> dict[str, Any]:
        return {"wall": spread(self.wall), "cpu": spread(self.cpu), "repeats": len(self.cpu)}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest, quartiles and largest."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return {"min": min(values), "lower": low, "median": middle, "upper": high, "max": max(values)}


def interleaved(jobs: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 1) -> dict[str, Times]:
    """Times of jobs that run alternately, so that other load on the machine affects all of them."""
    found = {name: Times() for name in jobs}
    for _ in range(repeats + warm_up):
        for name, job in jobs.items():
            with found[name].timed():
                job()
    for times in found.values():
        times.drop(warm_up)
    return found


def cpu_ratio(times: Times, to: Times) -> float:
    """Median CPU seconds divided by those of another side."""
    return statistics.median(times.cpu) / statistics.median(to.cpu)


def resident_bytes() -> int:
    """Memory of this process now: its own pages and its share of those it has in common with others (PSS)."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise OSError("the kernel does not report how much memory this process holds")


def conditions() -> dict[str, Any]:
    """What a figure depends on besides the code: when, where, with what."""
    try:
        git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=10"]
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        commit = ""
    cpu = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit or "unknown",
        "machine": f"{cpu[0] if cpu else platform.machine()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 1),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def print_conditions(where: Mapping[str, Any]) -> None:
    """One line above a table."""
    print(
        f"{where['date']}, commit {where['commit']}, torch {where['versions']['torch']}, {where['machine']}, "
        f"threads {where['threads']}, load {where['load']}\n"
    )


def print_times(sides: Mapping[str, Times], to: str) -> None:
    """A markdown table: medians with quartiles, and the ratio of CPU seconds to one of the sides."""
    print("| side | CPU ms | wall ms | CPU by that of the first | repeats |".replace("the first", f"'{to}'"))
    print("|---|---|---|---|---|")
    for name, times in sides.items():
        cpu, wall = (_shown(spread(values)) for values in (times.cpu, times.wall))
        print(f"| {name} | {cpu} | {wall} | {cpu_ratio(times, sides[to]):.2f}x | {len(times.cpu)} |")


def _shown(found: Mapping[str, float]) -> str:
    return f"{found['median'] * 1e3:.4g} ({found['lower'] * 1e3:.4g} to {found['upper'] * 1e3:.4g})"


def write_results(path: Path | None, name: str, results: Mapping[str, Any]) -> None:
    """Write what was measured with its conditions as JSON; without a path nothing."""
    if path is not None:
        path.write_text(json.dumps({"benchmark": name, **conditions(), **results}, indent=1) + "\n")
