# SPDX-License-Identifier: Apache-2.0
"""A training step of FL-MRCM at a source site against a step of FL-MR, alternately in one run; prints a markdown table.

    python benchmarks/feature_alignment.py [--channels 32] [--size 128] [--batch 4] [--repeats 5] [--check]

Both are the same MONAI trainer on the same images with the network of the paper; FL-MRCM has the handler in addition.
``features`` draws the target's latent vectors from a bank, ``inputs`` runs the source's encoder on as many images of
the target. Before anything is timed, all must train the same weights at lambda_adv = 0. Times are CPU seconds of one
thread (on a GPU: wall seconds); the ratio is the median over repeats of the ratio in one repeat. ``--check`` ends with
1 if a ratio is above the target.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time

import torch
from monai.engines import SupervisedTrainer
from torch.utils.data import DataLoader, Dataset

from fedmonai.federated.protocol import RoundContext
from fedmonai.methods.fl_mrcm import FeatureAlignment
from fedmonai.networks.reconstruction_unet import ReconstructionUNet

SMOKE = ["--channels", "2", "--size", "32", "--batch", "1", "--steps", "1", "--repeats", "2"]
TARGET = 1.45
SIDES = ("FL-MR", "FL-MRCM, features", "FL-MRCM, inputs")


class Images(Dataset):
    """Random images and labels, ready for the network."""

    def __init__(self, count: int, size: int, seed: int, device: str) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images, self.labels = torch.randn(2, count, 1, size, size, generator=generator).to(device)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"image": self.images[index], "label": self.labels[index]}


def make_trainer(
    settings: argparse.Namespace, seed: int, alignment: str | None, lambda_adv: float = 1.0
) -> SupervisedTrainer:
    torch.manual_seed(0)
    network = ReconstructionUNet(base_channels=settings.channels).to(settings.device)
    handlers = []
    if alignment is not None:
        own = {"latent_size": 4 * 16 * settings.channels, "share_features": True, "device": settings.device}
        own |= {"lambda_adv": lambda_adv, "lambda_ramp": 0, "min_accuracy": 0.0}  # the term is in every step
        handlers = [FeatureAlignment("B", "I", alignment=alignment, **own)]
    data = Images(settings.steps * settings.batch, settings.size, seed, settings.device)
    return SupervisedTrainer(
        device=settings.device,
        max_epochs=1,
        train_data_loader=DataLoader(data, batch_size=settings.batch),
        network=network,
        optimizer=torch.optim.RMSprop(network.parameters(), lr=1e-4),
        loss_function=torch.nn.L1Loss(),
        train_handlers=handlers,
        decollate=False,
    )


def make_sides(settings: argparse.Namespace, lambda_adv: float = 1.0) -> dict[str, SupervisedTrainer]:
    trainers = (make_trainer(settings, 1, mode, lambda_adv) for mode in (None, "features", "inputs"))
    sides = dict(zip(SIDES, trainers, strict=True))
    bank = torch.randn(256, 4 * 16 * settings.channels, device=settings.device)
    target = {"I": make_trainer(settings, 2, None)}.__getitem__
    received = {"target_latents": {"latents": bank}}
    sides[SIDES[1]].state.round_context = RoundContext(2, "B", received, [])
    sides[SIDES[2]].state.round_context = RoundContext(2, "B", {}, [], other_trainer=target)
    return sides


def same_without_weight(settings: argparse.Namespace) -> bool:
    """Whether all three train the same weights, to the bit, where the alignment has no weight."""
    small = argparse.Namespace(**{**vars(settings), "channels": 2, "size": 32})
    states = []
    for trainer in make_sides(small, lambda_adv=0.0).values():
        trainer.run()
        states.append(trainer.network.state_dict())
    return all(torch.equal(states[0][key], state[key]) for state in states[1:] for key in state)


def seconds_of(trainer: SupervisedTrainer, device: str) -> float:
    """Seconds per step of one epoch."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    trainer.state.max_epochs = trainer.state.epoch + 1
    if device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    trainer.run()
    if device != "cpu":
        torch.cuda.synchronize()
    return (clock() - start) / trainer.state.epoch_length


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2, help="steps per measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a ratio is above the target")
    settings = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if not same_without_weight(settings):
        print("with lambda_adv = 0 the methods train differently: the times are not valid", file=sys.stderr)
        return 1
    sides = make_sides(settings)
    for trainer in sides.values():
        seconds_of(trainer, settings.device)  # the first pass allocates
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(settings.repeats):
        for name, trainer in sides.items():
            seconds[name].append(seconds_of(trainer, settings.device))
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds[SIDES[0]], strict=True)) for name in SIDES
    }
    machine = f"{platform.machine()}, 1 thread" if settings.device == "cpu" else torch.cuda.get_device_name()
    print(
        f"U-Net of {settings.channels} channels, {settings.batch} x {settings.size} x {settings.size}, torch "
        f"{torch.__version__}, {machine}; medians of {settings.repeats} repeats\n"
    )
    print("| step | ms | ratio to FL-MR | target |\n|---|---|---|---|")
    for name in SIDES:
        target = "-" if name == SIDES[0] else f"at most {TARGET}"
        print(f"| {name} | {statistics.median(seconds[name]) * 1e3:.0f} | {ratios[name]:.2f} | {target} |")
    return 1 if settings.check and max(ratios.values()) > TARGET else 0


if __name__ == "__main__":
    raise SystemExit(main())
