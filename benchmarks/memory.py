# SPDX-License-Identifier: Apache-2.0
"""Memory of a federation of sites that keep none of their weights, in models of 7.76 million weights.

    python benchmarks/memory.py [--sites 1 4 16] [--channels 32] [--json FILE] [--check]

A real run of the bundle ``fl_mr`` with one real step of training a site and small images, in a process of its own for
every number of sites. Memory is what the process holds at the end of the second round beyond what it held after the
imports (PSS), and the most that it held at any time (peak of the resident set), both in copies of the model. ``at
once`` is with ``max_norm_ratio: null``, where an update needs no memory; by default the updates of a round are compared
with each other, so there is one for every site that takes part.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from measuring import conditions, print_conditions, resident_bytes, write_results
from round_overhead import BUNDLE, write_data

from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.validation import UpdateValidator
from fedmonai.methods.averaging import WeightedMean

SMOKE = ["--sites", "2", "--channels", "2", "--inside", "--json", "{folder}/results.json"]
TARGET = 6


def most_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def federation(sites: int, channels: int, ratio: float | None, folder: Path) -> Federation:
    ids = {"base_channels": channels, "resolution": 32, "batch_size": 1, "sequence": None, "device": "cpu"}
    specs = {f"site{index}": {"dataset_dir": str(folder / "data")} for index in range(sites)}
    guard = UpdateValidator(max_norm_ratio=ratio)
    plan = SitePlan(str(BUNDLE), specs, folder / f"run{channels}", local=ids, guard=guard, local_steps=1)
    return Federation(LocalPool(plan), WeightedMean(), 3)


def measure(sites: int, channels: int, ratio: float | None, folder: Path) -> dict[str, Any]:
    """Run three rounds and return what the process holds after the second beyond its imports, in models."""
    write_data(folder / "data")
    federation(1, 1, ratio, folder).run()  # what is imported or set up on the way
    before, held = resident_bytes(), []
    engine = federation(sites, channels, ratio, folder)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: held.append(resident_bytes() - before))
    engine.run()
    model = sum(t.numel() * t.element_size() for t in engine.strategy.global_weights.values())
    return {"sites": sites, "bytes": model, "held": held[1] / model, "most": (most_bytes() - before) / model}


def in_a_process(sites: int, channels: int, at_once: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, "--sites", str(sites), "--channels", str(channels), "--work"]
    done = subprocess.run([*command, *["--at_once"] * at_once], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sites", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--channels", type=int, default=32, help="of the U-Net; 32 are 7.76 M weights")
    parser.add_argument("--inside", action="store_true", help="in this process; the figures are then not valid")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--at_once", action="store_true", help=argparse.SUPPRESS)
    settings = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for sites in settings.sites:
        for at_once in [settings.at_once] if settings.work else (False, True):
            if settings.work or settings.inside:
                disabled = logging.root.manager.disable
                logging.disable(logging.WARNING)
                with tempfile.TemporaryDirectory() as folder:
                    row = measure(sites, settings.channels, None if at_once else 30.0, Path(folder))
                logging.disable(disabled)
            else:
                row = in_a_process(sites, settings.channels, at_once)
            rows.append({"at_once": at_once, **row})
    if settings.work:
        print(json.dumps(rows[-1]))
        return 0
    print_conditions(conditions())
    print(f"one model: {rows[0]['bytes'] / 1e6:.1f} MB\n")
    print("| sites | updates | held after a round, models | most at any time, models |")
    print("|---|---|---|---|")
    for row in rows:
        how = "at once" if row["at_once"] else "compared"
        print(f"| {row['sites']} | {how} | {row['held']:.1f} | {row['most']:.1f} |")
    good = all(row["held"] <= TARGET for row in rows if row["at_once"])
    print(f"\ntarget: at once at most {TARGET} models beyond the imports: {'PASS' if good else 'FAIL'}")
    write_results(settings.json, "memory", {"rows": rows, "good": good})
    return 1 if settings.check and not good else 0


if __name__ == "__main__":
    sys.exit(main())
