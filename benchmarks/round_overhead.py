# SPDX-License-Identifier: Apache-2.0
"""Cost of a round without training: the engine's own work for four sites and 7.76 million weights.

    python benchmarks/round_overhead.py [--rounds 15] [--sites 4] [--channels 32] [--json FILE] [--check]

Ours is a real run of the bundle ``fl_mr``: ``Federation``, ``SiteAlgo``, ``WeightedMean``, ``UpdateValidator``,
records. Only the training step is left out (the trainer's ``iteration_update`` returns a loss at once), so a local
training is one empty iteration over one slice. It is run three times: as shipped, with the state on disk after
every round; without that; and without the bound that compares the updates of a round (``max_norm_ratio: null``), where
an update is added to the mean at once.

The peers are two flat loops, which we wrote ourselves, as short and as fast as we could: one network that all sites
use one after the other, one copy down, one running mean (``_foreach_copy_``, ``_foreach_lerp_``). The first makes the
checks that ours makes on every update (finite, largest value, norm of the difference), the other none. They keep no
records, seed nothing, write nothing. They run between our rounds in the same process; all end in the same weights,
which is printed first. CPU seconds count all threads, so a state that is written beside the round is in them.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from ignite.engine import Events
from measuring import Times, conditions, cpu_ratio, print_conditions, print_times, resident_bytes, write_results
from torch import Tensor

from fedmonai.federated.federation import Federation, attach
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.plan import SitePlan
from fedmonai.federated.validation import UpdateValidator
from fedmonai.methods.averaging import WeightedMean
from fedmonai.networks.reconstruction_unet import ReconstructionUNet

SMOKE = ["--rounds", "1", "--sites", "2", "--channels", "2", "--json", "{folder}/results.json"]
BUNDLE = Path(__file__).parents[1] / "bundles" / "fl_mr"
TARGET = 1.3
WARM_UP = 3
FLAT, BARE = "flat loop with the same checks (ours)", "flat loop without checks (ours)"
SHIPPED, UNSAVED, AT_ONCE = "fedmonai as shipped", "fedmonai, no state on disk", "fedmonai, no bound between updates"


def no_step(engine: Any, batch: Any) -> dict[str, Tensor]:
    """The training step that is left out."""
    return {"loss": torch.ones(())}


class FlatLoop:
    """Federated averaging in as few operations as there are: one network, one copy down, one running mean."""

    def __init__(self, sites: int, channels: int, checks: bool) -> None:
        torch.manual_seed(0)
        self.sites, self.checks = sites, checks
        self.network = list(ReconstructionUNet(1, 1, channels).state_dict().values())
        self.weights = [tensor.clone() for tensor in self.network]
        self.mean = [torch.empty_like(tensor) for tensor in self.network]

    @torch.no_grad()
    def round(self) -> None:
        for count in range(1, self.sites + 1):
            torch._foreach_copy_(self.network, self.weights)
            if self.checks:
                self.check()
            if count == 1:
                torch._foreach_copy_(self.mean, self.network)
            else:
                torch._foreach_lerp_(self.mean, self.network, 1 / count)
        self.weights, self.mean = self.mean, self.weights

    def check(self) -> None:
        ends = torch.stack([end for tensor in self.network for end in torch.aminmax(tensor)]).abs()
        largest = float(ends.max())
        norm = float(torch.stack(torch._foreach_norm(torch._foreach_sub(self.network, self.weights))).norm())
        if not math.isfinite(largest) or largest > 1e8 or not math.isfinite(norm):
            raise ValueError(f"an update reaches {largest}, its norm is {norm}")


class Clock:
    """Ignite handler: times of every round, including the write of its state, and of the flat loops in between."""

    def __init__(self, times: Times, loops: dict[str, tuple[FlatLoop, Times]], save: bool) -> None:
        self.times, self.loops, self.save = times, loops, save

    def attach(self, engine: Federation) -> None:
        """Time a federation."""
        if not self.save:
            commit = engine._commit

            def without(finished: bool = False) -> None:
                if engine.state.epoch >= engine.state.max_epochs:  # the best model, for the final test
                    commit(finished)
                engine._pending = None

            engine._commit = without  # type: ignore[method-assign]
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        self.round = self.times.timed()
        self.round.__enter__()

    def __call__(self, engine: Federation) -> None:
        if self.save:
            engine._commit()
            engine.checkpoint.join()
        self.round.__exit__(None, None, None)
        for loop, times in self.loops.values():
            with times.timed():
                loop.round()
        self.round = self.times.timed()
        self.round.__enter__()


def write_data(folder: Path) -> None:
    """One slice per split, which is only read once."""
    for split in ("train", "val", "test"):
        (folder / split).mkdir(parents=True)
        with h5py.File(folder / split / f"{split}.h5", "w") as file:
            file["kspace"] = np.ones((1, 32, 32), np.complex64)
            file["reconstruction_esc"] = np.ones((1, 32, 32), np.float32)


def write_bundle(folder: Path, step: Callable = no_step) -> None:
    """The bundle with an overlay for the step, because a component comes from a config file only."""
    shutil.copytree(BUNDLE / "configs", folder / "configs")
    target = {"_target_": f"{__name__}.{step.__name__}", "_mode_": "callable"}
    (folder / "configs" / "step.json").write_text(json.dumps({"train::trainer::iteration_update": target}))


def measure(folder: Path, settings: argparse.Namespace, clock: Clock, out: str, guard: UpdateValidator | None) -> Any:
    """Run a federation without training steps and return its final weights."""
    ids = {"base_channels": settings.channels, "resolution": 32, "batch_size": 1, "sequence": None, "device": "cpu"}
    ids |= {"overlay": "configs/step.json"}
    specs = {f"site{index}": {"dataset_dir": str(folder / "data")} for index in range(settings.sites)}
    plan = SitePlan(str(folder / "bundle"), specs, folder / out, local=ids, guard=guard)
    total = settings.rounds + WARM_UP + 1  # the last round is validated
    engine = Federation(LocalPool(plan), WeightedMean(), total, val_interval=total)
    attach(engine, [clock]).run()
    clock.times.drop(WARM_UP)
    del clock.times.wall[settings.rounds :], clock.times.cpu[settings.rounds :]
    return list(engine.strategy.global_weights.values())


def check_same(sides: dict[str, list[Tensor]]) -> float:
    """The sum of the absolute weights, which is the same for all sides; otherwise the program ends."""
    sums = {name: sum(float(t.abs().sum(dtype=torch.float64)) for t in tensors) for name, tensors in sides.items()}
    first = next(iter(sides.values()))
    same = all(torch.equal(one, other) for tensors in sides.values() for one, other in zip(first, tensors, strict=True))
    if not same:
        raise SystemExit(f"the sides end in other weights, so their times are not valid: {sums}")
    return next(iter(sums.values()))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--channels", type=int, default=32, help="of the U-Net; 32 are 7.76 M weights")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    settings = parser.parse_args(arguments)
    logging.getLogger("fedmonai").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    times = {name: Times() for name in (FLAT, BARE, SHIPPED, UNSAVED, AT_ONCE)}
    loops = {name: FlatLoop(settings.sites, settings.channels, name == FLAT) for name in (FLAT, BARE)}
    weights = {name: loop.weights for name, loop in loops.items()}
    before = resident_bytes()
    memory = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(folder / "data")
        write_bundle(folder / "bundle")
        for name, save, guard in (
            (SHIPPED, True, None),
            (UNSAVED, False, None),
            (AT_ONCE, False, UpdateValidator(max_norm_ratio=None)),
        ):
            clock = Clock(times[name], {n: (loop, times[n]) for n, loop in loops.items()}, save)
            weights[name] = measure(folder, settings, clock, f"run{len(memory)}", guard)
            memory[name] = resident_bytes() - before
    for name in loops:
        times[name].drop(WARM_UP)
    total = check_same({**weights, **{name: loop.weights for name, loop in loops.items()}})
    count = sum(tensor.numel() for tensor in weights[FLAT])
    print_conditions(conditions())
    print(f"{settings.sites} sites, {count / 1e6:.2f} M weights, no training; same weights: sum of |w| {total:.9f}\n")
    print_times(times, FLAT)
    good = cpu_ratio(times[UNSAVED], times[FLAT]) <= TARGET
    print(
        f"\ntarget: without the state on disk at most {TARGET}x the flat loop that checks; {'PASS' if good else 'FAIL'}"
    )
    results = {"weights": count, "sites": settings.sites, "sum": total, "target": TARGET, "good": good}
    results["sides"] = {name: one.as_dict() for name, one in times.items()}
    write_results(settings.json, "round_overhead", results)
    return 1 if settings.check and not good else 0


if __name__ == "__main__":
    sys.exit(main())
