# SPDX-License-Identifier: Apache-2.0
"""Gain by worker processes: a bundle's federation with its sites in one process and in several.

    python benchmarks/workers.py [--bundle fl_mr] [--rounds 20] [--workers 2] [--repeats 5] [--json FILE] [--check]

Both sides are the bundle's demo as it is run by its users, without progress bar and report: generated data (written
before the first repeat), local training, validation after every round, a commit to disk every round, final test. The
sides alternate. Two times are measured separately: the preparation (imports of the workers, building the sites) and the
time from the start of the first round to the last commit, with warm workers; the whole adds the final test.

Wall seconds are meaningful only where the machine has a free core per worker. On a busy one see the CPU seconds of the
longest path: those of this process and of the worker that had most, which would be the wall seconds on free cores,
since workers wait at the end of a round only. CPU seconds of all processes together are the total cost. MiB is
the memory of all processes at the last commit, shared pages counted once (PSS).

The weights of all runs are compared first: equal to the bit, or no times are printed.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from measuring import conditions, print_conditions, spread, write_results
from monai.bundle import ConfigParser
from torch import Tensor

from fedmonai.federated.federation import Federation
from fedmonai.federated.process_pool import ProcessPool

SMOKE = ["--rounds", "1", "--workers", "1", "--repeats", "1", "--json", "{folder}/results.json", "--toy"]
BUNDLES = Path(__file__).parents[1] / "bundles"
TARGET = 1.7
TOY = {"local::base_channels": 2, "local::generated_size": 32, "local::generated_subjects": [1, 1, 1]}
TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(process: int) -> float:
    """CPU seconds of all threads of a process until now."""
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / TICK


def memory_bytes(process: int) -> int:
    """Memory of a process: its own pages and its share of those it has in common with others (PSS)."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


@dataclass
class Side:
    """What was measured of one number of workers, a value for each repeat."""

    prepare: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    path_cpu: list[float] = field(default_factory=list)
    all_cpu: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {name: spread(values) for name, values in vars(self).items()}


def federation(settings: argparse.Namespace, folder: Path, run: str, workers: int) -> Federation:
    """The bundle's demo."""
    bundle = BUNDLES / settings.bundle
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / name) for name in ("federated.yaml", "demo.yaml")])
    ids: dict[str, Any] = {"bundle_root": str(bundle), "output_dir": str(folder / run), "workers": workers}
    ids |= {"num_rounds": settings.rounds, "device": "cpu", "local::generated_dir": str(folder / "data")}
    parser.update({**ids, **(TOY if settings.toy else {})})
    engine: Federation = parser.get_parsed_content("federation")
    return engine


def measure(engine: Federation, side: Side) -> dict[str, Tensor]:
    """Run a federation and return its final weights."""
    begun = time.perf_counter()
    test, ends = engine.evaluations.test, []

    def used() -> list[float]:
        return [time.process_time(), *map(cpu_seconds, processes[1:])]

    def noted(*arguments: Any) -> Any:  # the last round is on disk when the final test begins
        ends.append((time.perf_counter(), used(), sum(map(memory_bytes, processes))))
        return test(*arguments)

    engine.evaluations.test = noted  # type: ignore[method-assign]
    engine.prepare()
    pool = engine.sites
    workers = [worker.process for worker in pool.workers] if isinstance(pool, ProcessPool) else []
    processes = [os.getpid(), *(process for process in workers if process is not None)]
    started, before = time.perf_counter(), used()
    engine.run()
    ((last, after, memory),) = ends
    spent = [late - early for early, late in zip(before, after, strict=True)]
    side.prepare.append(started - begun)
    side.rounds.append(last - started)
    side.whole.append(time.perf_counter() - begun)
    side.path_cpu.append(spent[0] + max(spent[1:], default=0.0))
    side.all_cpu.append(sum(spent))
    side.memory.append(memory / 2**20)
    return dict(engine.strategy.global_weights)


def print_table(sides: dict[int, Side]) -> None:
    """Medians with quartiles."""
    print(
        "| workers | first round to last commit, s | CPU s, longest path | CPU s, all | preparation, s | all, s | MiB |"
    )
    print("|---|---|---|---|---|---|---|")
    for workers, side in sides.items():
        values = (side.rounds, side.path_cpu, side.all_cpu, side.prepare, side.whole, side.memory)
        shown = (f"{s['median']:.3g} ({s['lower']:.3g} to {s['upper']:.3g})" for s in map(spread, values))
        print(f"| {workers} | {' | '.join(shown)} |")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", default="fl_mr")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--toy", action="store_true", help="a network and data of a test's size")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    settings = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    sides = {0: Side(), settings.workers: Side()}
    weights: list[dict[str, Tensor]] = []
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            made = federation(settings, folder, "data_run", 0)
            made.prepare()  # writes the data
            made.close()
            for repeat in range(settings.repeats):
                for workers, side in sides.items():
                    weights.append(measure(federation(settings, folder, f"run{repeat}_{workers}", workers), side))
    finally:
        logging.disable(logging.NOTSET)
    if not all(torch.equal(tensor, one[key]) for one in weights for key, tensor in weights[0].items()):
        raise SystemExit("the sides end in other weights, so their times are not valid")
    total = sum(float(tensor.abs().sum(dtype=torch.float64)) for tensor in weights[0].values())
    print_conditions(conditions())
    size = f"{len(weights)} runs of {settings.bundle}, {settings.rounds} rounds"
    print(f"{size}; same weights to the bit: sum of |w| {total:.9f}\n")
    print_table(sides)
    ratios = {
        name: statistics.median(getattr(sides[0], name)) / statistics.median(getattr(sides[settings.workers], name))
        for name in ("rounds", "path_cpu", "whole")
    }
    good = ratios["rounds"] >= TARGET and ratios["whole"] >= 1
    print(
        f"\n{settings.workers} workers are faster {ratios['rounds']:.2f}x in wall seconds from first round to last "
        f"commit, {ratios['path_cpu']:.2f}x by the CPU seconds of the longest path, {ratios['whole']:.2f}x from end to "
        f"end; target: {TARGET}x in wall seconds, never slower from end to end; {'PASS' if good else 'FAIL'}"
    )
    results = {"bundle": settings.bundle, "rounds": settings.rounds, "sum": total, "ratios": ratios, "good": good}
    results["sides"] = {str(workers): side.as_dict() for workers, side in sides.items()}
    write_results(settings.json, "workers", results)
    return 1 if settings.check and not good else 0


if __name__ == "__main__":
    sys.exit(main())
