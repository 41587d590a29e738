# SPDX-License-Identifier: Apache-2.0
"""A long federation of many sites under faults: it finishes, its records agree, its memory is flat; prints a table.

    python benchmarks/soak.py [--rounds 200] [--sites 20] [--seed 0] [--folder DIR] [--check]

Every local training draws from (seed, round, site) whether it goes wrong, and how: an exception, no memory, a hostile
update. Twice the process is killed (SIGKILL) in the middle of a round and the run resumed. Then the tables are compared
with each other and with what was injected, and the weights with those of an uninterrupted run under the same faults.
Memory is the resident set of the process at the end of each round, from the tenth round of a process on; flat means
that the second half of a process never needs 10 % more than its first. ``--check`` ends with 1 if a check fails.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.fl.utils.exchange_object import ExchangeObject

from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.plan import SitePlan
from fedmonai.methods.averaging import WeightedMean
from fedmonai.seeding import derive_seed

SMOKE = ["--rounds", "3", "--sites", "3", "--work", "{folder}"]
BUNDLE = Path(__file__).parent / "tiny_bundle"
SHARE_OF_FAULTS = 0.15
WARM_UP = 10


def raise_error(update: ExchangeObject) -> ExchangeObject:
    raise RuntimeError("injected: the training fails")


def exhaust_memory(update: ExchangeObject) -> ExchangeObject:
    bytearray(1 << 62)
    return update


def with_value(value: float) -> Callable[[ExchangeObject], ExchangeObject]:
    def spoil(update: ExchangeObject) -> ExchangeObject:
        key = next(iter(update.weights))
        update.weights[key] = torch.full_like(update.weights[key], value)
        return update

    return spoil


def transpose(update: ExchangeObject) -> ExchangeObject:
    key = next(iter(update.weights))
    update.weights[key] = update.weights[key].T
    return update


def drop_key(update: ExchangeObject) -> ExchangeObject:
    update.weights.popitem()
    return update


def make_stale(update: ExchangeObject) -> ExchangeObject:
    update.statistics["round"] -= 1
    return update


def count_negative(update: ExchangeObject) -> ExchangeObject:
    update.statistics["num_samples"] = -1
    return update


#: what happens to an update, and what the round's record must contain
FAULTS: list[tuple[Callable[[ExchangeObject], ExchangeObject], str]] = [
    (raise_error, "injected: the training fails"),
    (exhaust_memory, "MemoryError"),
    (with_value(math.nan), "NaN or infinite"),
    (with_value(1e9), "max_abs"),
    (transpose, "has shape"),
    (drop_key, "tensors are missing"),
    (make_stale, "belongs to round"),
    (count_negative, "num_samples is -1"),
]


def fault_of(seed: int, number: int, site: str) -> int | None:
    """Index of the fault of a local training, or None; a function of its arguments alone."""
    stream = random.Random(derive_seed(seed, "fault", number, site))
    return stream.randrange(len(FAULTS)) if stream.random() < SHARE_OF_FAULTS else None


class FaultySites(LocalPool):
    """Sites whose local trainings fail as drawn."""

    fault_seed = 0

    def train(self, name: str, message: ExchangeObject) -> ExchangeObject:
        update = super().train(name, message)
        fault = fault_of(self.fault_seed, self._round, name)
        return update if fault is None else FAULTS[fault][0](update)


def resident_bytes() -> int:
    """Resident set of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def make_federation(settings: argparse.Namespace, out: Path) -> Federation:
    """The federation: sites differ in the offset of their labels, 80 % of them take part in a round."""
    specs = {f"site{index:02d}": {"offset": 0.02 * index} for index in range(settings.sites)}
    sites = FaultySites(SitePlan(str(BUNDLE), specs, out, seed=settings.seed))
    sites.fault_seed = settings.seed
    options = {"fraction": 0.8, "key_metric": "mse", "key_metric_mode": "min", "val_interval": 2}
    return Federation(sites, WeightedMean("samples"), settings.rounds, resume=True, method="soak", **options)


def work(settings: argparse.Namespace) -> None:
    """One process: run until the end, or until it kills itself in the middle of round ``--die``."""
    engine = make_federation(settings, settings.work)
    memory = settings.work / "memory.csv"

    def note(engine: Federation) -> None:
        with memory.open("a") as stream:
            stream.write(f"{os.getpid()},{engine.state.epoch},{resident_bytes()}\n")

    def die(engine: Federation) -> None:
        if engine.state.epoch == settings.die and len(engine._updates) > settings.sites // 3:
            os.kill(os.getpid(), signal.SIGKILL)

    engine.add_event_handler(Events.EPOCH_COMPLETED, note)
    engine.add_event_handler(Events.ITERATION_COMPLETED, die)
    engine.run()


def start(settings: argparse.Namespace, out: Path, die: int) -> int:
    """Start a process of its own and return its exit code."""
    numbers = {"rounds": settings.rounds, "sites": settings.sites, "seed": settings.seed, "die": die}
    command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in numbers.items()), f"--work={out}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode not in (0, -signal.SIGKILL):
        sys.exit(f"a process ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.returncode


def read_rounds(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


def wrong_in_rounds(settings: argparse.Namespace, rounds: list[dict[str, Any]]) -> list[str]:
    """Differences between rounds.jsonl and the injected faults."""
    wrong = []
    if [record["round"] for record in rounds] != list(range(1, settings.rounds + 1)):
        wrong.append("rounds are missing, double or out of order")
    for record in rounds:
        number, failed = record["round"], record["failed"]
        for site in record["participants"]:
            fault = fault_of(settings.seed, number, site)
            if (fault is not None) != (site in failed) or (fault is not None and FAULTS[fault][1] not in failed[site]):
                wrong.append(f"round {number}, {site}: {failed.get(site)!r} for fault {fault}")
        if sorted([*record["completed"], *failed]) != sorted(record["participants"]):
            wrong.append(f"round {number}: completed and failed are not the participants")
    return wrong


def wrong_in_metrics(out: Path, rounds: list[dict[str, Any]]) -> list[str]:
    """Where metrics.csv and rounds.jsonl disagree: losses, validations, the best round."""
    with (out / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    keys = [tuple(row[name] for name in ("round", "site", "model", "split", "metric")) for row in rows]
    wrong = [f"{len(keys) - len(set(keys))} rows of metrics.csv are double"] if len(keys) != len(set(keys)) else []
    losses = {(int(r["round"]), r["site"]): float(r["value"]) for r in rows if r["metric"] == "loss"}
    recorded = {(record["round"], site): loss for record in rounds for site, loss in record["loss"].items()}
    if losses != recorded:
        wrong.append("the losses of metrics.csv are not those of rounds.jsonl")
    values: dict[int, list[float]] = {}
    for row in rows:
        if (row["split"], row["metric"]) == ("val", "mse"):
            values.setdefault(int(row["round"]), []).append(float(row["value"]))
    if sorted(values) != [record["round"] for record in rounds if record["evaluated"]]:
        wrong.append("the validated rounds of metrics.csv are not those of rounds.jsonl")
    means = {number: statistics.fmean(found) for number, found in values.items()}
    if min(means, key=means.__getitem__) != rounds[-1]["best_round"]:
        wrong.append(f"best round {rounds[-1]['best_round']} does not have the smallest validation error")
    return wrong


def growth(out: Path) -> float:
    """Largest memory in the second half of a process divided by that in its first, minus one; largest of all."""
    found: dict[str, list[int]] = {}
    for line in (out / "memory.csv").read_text().splitlines():
        process, _, size = line.split(",")
        found.setdefault(process, []).append(int(size))
    halves = [(sizes[WARM_UP:], len(sizes[WARM_UP:]) // 2) for sizes in found.values() if len(sizes) > WARM_UP + 4]
    return max(max(sizes[half:]) / max(sizes[:half]) - 1 for sizes, half in halves)


def same_weights(first: Path, second: Path) -> bool:
    one, other = (torch.load(out / "models" / "model_final.pt", weights_only=True) for out in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def soak(settings: argparse.Namespace, folder: Path) -> bool:
    """Run everything, print the table and return whether all checks pass."""
    out, whole = folder / "soak", folder / "uninterrupted"
    for path in (out, whole):
        path.mkdir(parents=True)
    started = time.perf_counter()
    kills = [start(settings, out, settings.rounds * part // 3) for part in (1, 2)]
    ended = start(settings, out, 0)
    seconds = time.perf_counter() - started
    start(settings, whole, 0)
    rounds = read_rounds(out)
    wrong = wrong_in_rounds(settings, rounds) + wrong_in_metrics(out, rounds)
    grown, faults = growth(out), sum(len(record["failed"]) for record in rounds)
    turns = sum(len(record["participants"]) for record in rounds)
    checks = [
        ("killed and resumed", f"{kills.count(-signal.SIGKILL)} times", kills == [-signal.SIGKILL] * 2 and ended == 0),
        ("faults, each refused with its reason", f"{faults} of {turns} local trainings", not wrong and faults > 0),
        ("rounds.jsonl and metrics.csv", f"{len(wrong)} contradictions", not wrong),
        ("weights", "as without interruption, to the bit", same_weights(out, whole)),
        ("memory, second half by first", f"{100 * grown:+.1f} %", grown <= 0.10),
    ]
    print(
        f"{settings.sites} sites, {settings.rounds} rounds, {seconds:.0f} s with two resumes\n\n| what | found | ok |"
    )
    print("|---|---|---|")
    for what, found, good in checks:
        print(f"| {what} | {found} | {'yes' if good else 'NO'} |")
    for line in wrong[:20]:
        print(f"- {line}")
    return all(good for _, _, good in checks)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--sites", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the runs here instead of in a temporary folder")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--die", type=int, default=0, help=argparse.SUPPRESS)
    settings = parser.parse_args(arguments)
    if settings.work is not None:
        work(settings)
        return 0
    if settings.rounds < 3 * (WARM_UP + 5):  # one of three processes then has enough rounds to compare its halves
        parser.error(f"--rounds {settings.rounds} is too few to see memory grow; give {3 * (WARM_UP + 5)} or more")
    with tempfile.TemporaryDirectory() as temporary:
        good = soak(settings, settings.folder or Path(temporary))
    return 0 if good or not settings.check else 1


if __name__ == "__main__":
    sys.exit(main())
