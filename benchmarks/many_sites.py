# SPDX-License-Identifier: Apache-2.0
"""Cost of registered sites that do not take part: start, seconds a round and memory, from 10 to 10,000 of them.

    python benchmarks/many_sites.py [--registered 10 100 1000 10000] [--asked 10] [--rounds 20] [--json FILE] [--check]

A federation of the smallest site there is (``tiny_bundle``), in a process of its own for every number of registered
sites: ``--asked`` of them train in a round and as many are validated (``validated_fraction``). All are held in memory,
or as many as train with ``--resident asked`` (``resident_sites``). Start is the time from the built federation to the
first round, after the imports. There is no peer: figures are compared with those of the fewest registered sites, at
the end.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from measuring import Times, conditions, print_conditions, resident_bytes, write_results

from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.plan import SitePlan
from fedmonai.methods.averaging import WeightedMean

SMOKE = ["--registered", "3", "6", "--asked", "2", "--rounds", "2", "--inside", "--json", "{folder}/results.json"]
BUNDLE = Path(__file__).parent / "tiny_bundle"
WARM_UP = 3
SECONDS, GROWTH = 2.0, 1.25


def measure(registered: int, asked: int, rounds: int, held: bool, folder: Path) -> dict[str, Any]:
    """Run a federation with this number of registered sites."""
    started = time.process_time()
    specs = {f"site{index:05d}": {"offset": 0.01 * (index % 10)} for index in range(registered)}
    plan = SitePlan(str(BUNDLE), specs, folder)
    share = asked / registered
    options = {"fraction": share, "validated_fraction": share, "key_metric": "mse", "key_metric_mode": "min"}
    tested = plan.names[:asked]
    pool = LocalPool(plan, resident_sites=None if held else asked)
    engine = Federation(pool, WeightedMean(), rounds + WARM_UP + 1, test_sites=tested, method="many sites", **options)
    times = Times()
    running = []

    def next_round(_: Federation) -> None:
        if running:
            running.pop().__exit__(None, None, None)
        running.append(times.timed())
        running[-1].__enter__()

    engine.add_event_handler(Events.EPOCH_COMPLETED, next_round)
    engine.prepare()
    start = time.process_time() - started
    before = resident_bytes()
    engine.run()
    times.drop(WARM_UP)
    mebibytes = {"start": before / 2**20, "end": resident_bytes() / 2**20}
    return {"registered": registered, "start": start, "round": times.as_dict(), "mebibytes": mebibytes}


def in_a_process(settings: argparse.Namespace, registered: int) -> dict[str, Any]:
    numbers = ["--asked", str(settings.asked), "--rounds", str(settings.rounds), "--resident", settings.resident]
    command = [sys.executable, __file__, "--registered", str(registered), *numbers, "--work"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--registered", type=int, nargs="+", default=[10, 100, 1000, 10000])
    parser.add_argument("--asked", type=int, default=10, help="sites that train in a round")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--resident", choices=("asked", "all"), default="all", help="sites held in memory")
    parser.add_argument("--inside", action="store_true", help="in this process; memory is then not valid")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    settings = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for registered in settings.registered:
        if settings.work or settings.inside:
            disabled = logging.root.manager.disable
            logging.disable(logging.WARNING)
            with tempfile.TemporaryDirectory() as folder:
                held = settings.resident == "all"
                rows.append(measure(registered, settings.asked, settings.rounds, held, Path(folder) / "run"))
            logging.disable(disabled)
        else:
            rows.append(in_a_process(settings, registered))
    if settings.work:
        print(json.dumps(rows[-1]))
        return 0
    print_conditions(conditions())
    print(f"{settings.asked} sites a round, {settings.rounds} rounds, {settings.resident} in memory, CPU seconds\n")
    print("| registered | start s | round ms (quartiles) | memory at the start, at the end MiB |")
    print("|---|---|---|---|")
    for row in rows:
        cpu = {name: 1e3 * value for name, value in row["round"]["cpu"].items()}
        shown = f"{cpu['median']:.1f} ({cpu['lower']:.1f} to {cpu['upper']:.1f})"
        memory = row["mebibytes"]
        print(f"| {row['registered']} | {row['start']:.2f} | {shown} | {memory['start']:.0f}, {memory['end']:.0f} |")
    first, last = rows[0], rows[-1]
    slower = last["round"]["cpu"]["median"] / first["round"]["cpu"]["median"]
    good = slower <= GROWTH and max(row["start"] for row in rows if row["registered"] <= 1000) <= SECONDS
    print(f"\ntarget: start below {SECONDS} s with up to 1,000, a round at most {GROWTH}x that of the fewest: ", end="")
    print(f"{slower:.2f}x, {'PASS' if good else 'FAIL'}")
    write_results(settings.json, "many_sites", {"rows": rows, "good": good})
    return 1 if settings.check and not good else 0


if __name__ == "__main__":
    sys.exit(main())
