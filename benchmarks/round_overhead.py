# SPDX-License-Identifier: Apache-2.0
"""What a round costs when nobody trains: the engine's own work for four sites and 7.76 million weights.

    python benchmarks/round_overhead.py [--rounds 15] [--sites 4] [--channels 32] [--check]

Ours is a real run of the bundle ``fl_mr``: ``Federation``, ``SiteAlgo``, ``WeightedMean``, guard, records and all. The
only thing taken out is the training step (the trainer's ``iteration_update`` returns a loss at once), so a turn is one
iteration of nothing over one slice. The peer is the loop of one-file programs for federated averaging: deepcopy the
global state dict for a site, load it, deepcopy the site's state dict back, average name by name, load. It checks,
seeds, records and keeps nothing. It runs between our rounds in the same process, and both end in the same weights.

Writing the state of a round to disk is what makes ``--resume`` possible and the peer does not do it; it is a row of its
own. So is a round whose sites hold a filled optimizer state (RMSprop, as after real training), which has to be kept as
well in case a turn fails. Times are CPU seconds of one thread; the first rounds warm up and are left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from ignite.engine import Events
from torch import Tensor

from fedmonai.federated.federation import Federation, attach
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.plan import SitePlan
from fedmonai.methods.averaging import WeightedMean
from fedmonai.networks.reconstruction_unet import ReconstructionUNet

BUNDLE = Path(__file__).parents[1] / "bundles" / "fl_mr"
TARGET_SECONDS, TARGET_RATIO = 0.06, 1.5
WARM_UP = 3


def no_step(engine: Any, batch: Any) -> dict[str, Tensor]:
    """The training step that is left out."""
    return {"loss": torch.ones(())}


def full_state(engine: Any, batch: Any) -> dict[str, Tensor]:
    """The same, but the optimizer holds what a step would have left."""
    for group in engine.optimizer.param_groups:
        for weight in group["params"]:
            state = engine.optimizer.state[weight]
            if not state:
                state["step"], state["square_avg"] = torch.ones(()), torch.zeros_like(weight)
    return no_step(engine, batch)


class PlainLoop:
    """The peer: federated averaging as one-file programs write it."""

    def __init__(self, sites: int, channels: int) -> None:
        torch.manual_seed(0)
        self.model = ReconstructionUNet(1, 1, channels)
        self.sites = [copy.deepcopy(self.model) for _ in range(sites)]

    def round(self) -> None:
        returned = []
        for site in self.sites:
            site.load_state_dict(copy.deepcopy(self.model.state_dict()))
            returned.append(copy.deepcopy(site.state_dict()))
        average = copy.deepcopy(returned[0])
        for key in average:
            for weights in returned[1:]:
                average[key] += weights[key]
            average[key] = torch.div(average[key], len(returned))
        self.model.load_state_dict(average)


@dataclass
class Clock:
    """Ignite handler: CPU seconds of every round without its commit, of every commit, and of the peer in between."""

    peer: PlainLoop
    rounds: list[float] = field(default_factory=list)
    commits: list[float] = field(default_factory=list)
    peers: list[float] = field(default_factory=list)
    commit: float = 0.0

    def attach(self, engine: Federation) -> None:
        """Time a federation."""
        engine._commit = self.timed(engine._commit)  # type: ignore[method-assign]
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        self.started = time.process_time()

    def timed(self, commit: Callable[..., None]) -> Callable[..., None]:
        def commit_and_note(*args: Any, **kwargs: Any) -> None:
            start = time.process_time()
            commit(*args, **kwargs)
            self.commit = time.process_time() - start

        return commit_and_note

    def __call__(self, engine: Federation) -> None:
        self.rounds.append(time.process_time() - self.started - self.commit)
        self.commits.append(self.commit)
        start = time.process_time()
        self.peer.round()
        self.peers.append(time.process_time() - start)
        self.started = time.process_time()


def write_data(folder: Path) -> None:
    """One slice per split; nothing is done with it but reading it once."""
    for split in ("train", "val", "test"):
        (folder / split).mkdir(parents=True)
        with h5py.File(folder / split / f"{split}.h5", "w") as file:
            file["kspace"] = np.ones((1, 32, 32), np.complex64)
            file["reconstruction_esc"] = np.ones((1, 32, 32), np.float32)


def write_bundle(folder: Path) -> None:
    """The bundle with an overlay for every step, because a component comes from a config file only."""
    shutil.copytree(BUNDLE / "configs", folder / "configs")
    for step in (no_step, full_state):
        target = {"_target_": f"{__name__}.{step.__name__}", "_mode_": "callable"}
        overlay = {"train::trainer::iteration_update": target}
        (folder / "configs" / f"{step.__name__}.json").write_text(json.dumps(overlay))


def measure(folder: Path, step: Callable, sites: int, channels: int, rounds: int) -> Clock:
    """Run a federation without training steps."""
    ids = {"base_channels": channels, "resolution": 32, "batch_size": 1, "sequence": None, "device": "cpu"}
    ids |= {"reset_optimizer": False, "overlay": f"configs/{step.__name__}.json"}
    specs = {f"site{index}": {"dataset_dir": str(folder / "data")} for index in range(sites)}
    plan = SitePlan(str(folder / "bundle"), specs, folder / step.__name__, local=ids)
    total = rounds + WARM_UP + 1  # the last round is validated
    engine = Federation(LocalPool(plan), WeightedMean(), total, val_interval=total)
    clock = Clock(PlainLoop(sites, channels))
    attach(engine, [clock]).run()
    weights, peer = engine.strategy.global_weights, clock.peer.model.state_dict()
    difference = max(float((weights[key] - peer[key]).abs().max()) for key in weights)
    if difference > 1e-6 or clock.peers == []:
        raise SystemExit(f"ours and the peer's weights differ by {difference}: the times mean nothing")
    for times in (clock.rounds, clock.commits, clock.peers):
        del times[:WARM_UP], times[-1:]
    return clock


def print_table(empty: Clock, filled: Clock, sites: int, channels: int) -> float:
    """Print all rows and return ours over the peer's."""
    count = sum(t.numel() for t in empty.peer.model.state_dict().values())
    print(
        f"torch {torch.__version__}, {platform.machine()}, 1 thread, load {os.getloadavg()[0]:.1f}; {sites} sites, "
        f"{count / 1e6:.2f} M weights, no training; CPU seconds of {len(empty.rounds)} rounds\n"
    )
    print("| per round | median | smallest | to the plain loop | target |")
    print("|---|---|---|---|---|")
    ratio = statistics.median(empty.peers) / statistics.median(empty.rounds)
    rows = [
        ("plain deepcopy loop", empty.peers, "1.0x", ""),
        ("ours", empty.rounds, f"{ratio:.2f}x faster", f"<= {TARGET_SECONDS} s, >= {TARGET_RATIO}x"),
        ("ours, optimizers with a state", filled.rounds, "", ""),
        ("state to disk", empty.commits, "", ""),
        ("state to disk, optimizers with a state", filled.commits, "", ""),
    ]
    for name, times, against, target in rows:
        print(f"| {name} | {statistics.median(times):.4f} s | {min(times):.4f} s | {against} | {target} |")
    return ratio


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--channels", type=int, default=32, help="of the U-Net; 32 are 7.76 M weights")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder) / "data")
        write_bundle(Path(folder) / "bundle")
        sizes = (arguments.sites, arguments.channels, arguments.rounds)
        empty, filled = (measure(Path(folder), step, *sizes) for step in (no_step, full_state))
    ratio = print_table(empty, filled, arguments.sites, arguments.channels)
    good = statistics.median(empty.rounds) <= TARGET_SECONDS and ratio >= TARGET_RATIO
    print(f"\n{'PASS' if good else 'FAIL'}", file=sys.stderr)
    return 1 if arguments.check and not good else 0


if __name__ == "__main__":
    raise SystemExit(main())
