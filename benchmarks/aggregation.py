# SPDX-License-Identifier: Apache-2.0
"""Cost of the weighted mean relative to the memory it moves: state dicts of 4 and of 10 sites, 7.76 million weights.

    python benchmarks/aggregation.py [--repeats 15] [--channels 32] [--check]

The peer is ``memcpy``: averaging N state dicts reads N of them and writes one, the bytes that (N + 1) / 2 plain copies
of one model read and write. No program that keeps the updates apart can do with fewer. A second row is what one-file
programs do: deepcopy the first state dict, add the others name by name, divide.

Ours is ``WeightedMean.aggregate``, weighted by samples. All run alternately in one process on one thread, and before
anything is timed ours is compared with the mean in double precision. Times are CPU seconds.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedmonai.federated.messages import weights_message
from fedmonai.methods.averaging import WeightedMean
from fedmonai.networks.reconstruction_unet import ReconstructionUNet

SMOKE = ["--repeats", "2", "--channels", "2"]
TARGETS = {4: 1.5, 10: None}  # even numbers of sites; the target is for the four of a cross-silo federation


@dataclass
class Row:
    """Seconds of every repeat, for one number of sites."""

    sites: int
    megabytes: float
    memcpy: list[float]
    ours: list[float]
    plain: list[float]

    def ratio(self, times: list[float]) -> float:
        """Of the medians, to memcpy."""
        return statistics.median(times) / statistics.median(self.memcpy)


def plain_mean(updates: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The unweighted mean as one-file programs write it."""
    average = copy.deepcopy(updates[0])
    for key in average:
        for weights in updates[1:]:
            average[key] += weights[key]
        average[key] = torch.div(average[key], len(updates))
    return average


def copies(sources: list[Tensor], targets: list[Tensor]) -> None:
    """Plain copies of different buffers, none of which is still in the cache from the copy before."""
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)


def check(strategy: WeightedMean, messages: dict[str, Any]) -> None:
    """Compare with the weighted mean in double precision."""
    strategy.aggregate(1, messages)
    counts = {name: message.statistics["num_samples"] for name, message in messages.items()}
    for key, mean in strategy.global_weights.items():
        exact = sum(messages[n].weights[key].double() * (c / sum(counts.values())) for n, c in counts.items())
        difference = float((mean.double() - exact).abs().max())
        if difference > 1e-6:
            raise SystemExit(f"'{key}' is off by {difference}: the times are not valid")


def measure(sites: int, channels: int, repeats: int) -> Row:
    """Time all three alternately."""
    torch.manual_seed(0)
    initial = ReconstructionUNet(1, 1, channels).state_dict()
    updates = [{key: torch.randn_like(value) for key, value in initial.items()} for _ in range(sites)]
    strategy = WeightedMean("samples")
    strategy.initialize(initial)
    messages = {f"{i:02d}": weights_message(weights, num_samples=i + 1) for i, weights in enumerate(updates)}
    check(strategy, messages)
    count = sum(value.numel() for value in initial.values())
    sizes = [count] * (sites // 2) + [count - count // 2]  # (N + 1) / 2 models, for an even N
    sources, targets = [torch.randn(size) for size in sizes], [torch.zeros(size) for size in sizes]
    row = Row(sites, count * 4 * (sites + 1) / 1e6, [], [], [])
    jobs: list[tuple[list[float], Callable[[], Any]]] = [
        (row.memcpy, lambda: copies(sources, targets)),
        (row.ours, lambda: strategy.aggregate(1, messages)),
        (row.plain, lambda: plain_mean(updates)),
    ]
    for repeat in range(repeats + 1):
        for times, job in jobs:
            start = time.process_time()
            job()
            if repeat:  # the first one warms up
                times.append(time.process_time() - start)
    return row


def print_table(rows: list[Row], repeats: int) -> None:
    print(
        f"torch {torch.__version__}, {platform.machine()}, 1 thread, load {os.getloadavg()[0]:.1f}; medians of "
        f"{repeats} repeats\n"
    )
    print("| sites | moved | memcpy | ours | to memcpy | target | deepcopy, add, divide | to memcpy |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        memcpy, ours, plain = (statistics.median(times) * 1e3 for times in (row.memcpy, row.ours, row.plain))
        target = f"<= {TARGETS[row.sites]}x" if TARGETS[row.sites] else ""
        print(
            f"| {row.sites} | {row.megabytes:.0f} MB | {memcpy:.1f} ms | {ours:.1f} ms | {row.ratio(row.ours):.2f}x | "
            f"{target} | {plain:.1f} ms | {row.ratio(row.plain):.2f}x |"
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--channels", type=int, default=32, help="of the U-Net; 32 are 7.76 M weights")
    parser.add_argument("--check", action="store_true", help="exit with 1 if the target is missed")
    settings = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = [measure(sites, settings.channels, settings.repeats) for sites in TARGETS]
    print_table(rows, settings.repeats)
    good = all(row.ratio(row.ours) <= (TARGETS[row.sites] or math.inf) for row in rows)
    print(f"\n{'PASS' if good else 'FAIL'}", file=sys.stderr)
    return 1 if settings.check and not good else 0


if __name__ == "__main__":
    raise SystemExit(main())
