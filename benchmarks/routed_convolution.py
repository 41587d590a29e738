# SPDX-License-Identifier: Apache-2.0
"""Routed convolution of IOP-FL: one grouped convolution for the batch against a loop over its examples.

    python benchmarks/routed_convolution.py [--repeats 15] [--experts 6] [--device cuda] [--check]

One adaptation step of one layer, forward and backward (to the layer's input and to the router; the experts are frozen).
The peer is the authors' way: for every example it sums the weighted experts and convolves. ``loop, mixed once`` is a
better loop, whose kernels come from one matrix product as ours do. It shows where the gain comes from: on a CPU it is
the mixing, and the grouping adds little to it; on a GPU the grouping spares one launch per example. Where channels
outnumber pixels two to one, the grouped form is a batched matrix product.

All three are timed alternately in one process, in CPU seconds on one thread, so other load counts little (wall seconds
of finished work with ``--device cuda``). Outputs and gradients are compared before. Layers are those of the
segmentation U-Net (3x3); the deep ones have the target. Much of the time of large kernels can be page faults: the
variables ``MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_MMAP_THRESHOLD_=4000000000`` take them out of the comparison.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from fedmonai.networks.routed import RoutedConv2d

SMOKE = ["--repeats", "2", "--experts", "2", "--shrink", "16"]
TARGET = 1.5
#: (batch, channels, side, deep = bottleneck on small maps): images of 96 and 192 pixels by 16, of 384 by the paper's 5
LAYERS = (
    (16, 64, 96, False),
    (16, 256, 12, False),
    (16, 512, 6, True),
    (16, 512, 12, True),
    (5, 256, 48, False),
    (5, 512, 24, False),
)
METHODS = ("loop", "loop, mixed once", "grouped")

Step = Callable[[], tuple[Tensor, ...]]


@dataclass
class Row:
    """One layer: CPU seconds of every repeat by method, and the largest relative difference from the loop."""

    name: str
    deep: bool
    difference: float = 0.0
    seconds: dict[str, list[float]] = field(default_factory=lambda: {method: [] for method in METHODS})

    def ratio(self, method: str) -> float:
        return statistics.median(self.seconds[method]) / statistics.median(self.seconds["grouped"])


def loop(layer: RoutedConv2d, image: Tensor) -> Tensor:
    """The peer: kernels and convolutions one example at a time, after one pass of the router."""
    shares, outputs = layer.router(image), []
    for example, share in zip(image, shares, strict=True):
        weight = (share.view(-1, 1, 1, 1, 1) * layer.expert_weights).sum(0)
        bias = (share.view(-1, 1) * layer.expert_biases).sum(0)
        outputs.append(F.conv2d(example[None], weight, bias, padding=1))
    return torch.cat(outputs)


def loop_mixed_once(layer: RoutedConv2d, image: Tensor) -> Tensor:
    weights, biases = layer.mix(layer.router(image))
    assert biases is not None
    weights = weights.view(len(image), -1, *weights.shape[1:])
    kernels = zip(image, weights, biases.view(len(image), -1), strict=True)
    return torch.cat([F.conv2d(example[None], weight, bias, padding=1) for example, weight, bias in kernels])


def grouped(layer: RoutedConv2d, image: Tensor) -> Tensor:
    return layer(image)


def make_step(forward: Callable[[RoutedConv2d, Tensor], Tensor], layer: RoutedConv2d, image: Tensor) -> Step:
    wanted = [image, *layer.router.parameters()]

    def step() -> tuple[Tensor, ...]:
        output = forward(layer, image)
        return (output.detach(), *torch.autograd.grad(output.square().mean(), wanted))

    return step


def largest_difference(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> float:
    """Largest difference of output and gradients, each relative to its largest value."""
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(one, other, strict=True))


def seconds_of(step: Step, device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        step()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(
    batch: int, channels: int, side: int, deep: bool, experts: int = 6, repeats: int = 15, device: str = "cpu"
) -> Row:
    torch.manual_seed(0)
    layer = RoutedConv2d(channels, channels, 3, experts, padding=1, dropout=0.0).to(device)
    layer.expert_weights.normal_(std=(9 * channels) ** -0.5)
    image = torch.randn(batch, channels, side, side, device=device).requires_grad_()
    forwards = (loop, loop_mixed_once, grouped)
    steps = {method: make_step(forward, layer, image) for method, forward in zip(METHODS, forwards, strict=True)}
    row = Row(f"{channels} x {side}x{side}, batch {batch}", deep)
    expected = steps["loop"]()
    row.difference = max(largest_difference(steps[method](), expected) for method in METHODS[1:])
    order = list(METHODS)
    for _ in range(repeats):
        random.Random(len(row.seconds["loop"])).shuffle(order)
        for method in order:
            row.seconds[method].append(seconds_of(steps[method], device))
    return row


def print_table(rows: list[Row], experts: int, repeats: int, device: str) -> None:
    machine = f"{platform.machine()}, 1 thread" if device == "cpu" else torch.cuda.get_device_name()
    print(
        f"torch {torch.__version__}, {machine}, float32, load {os.getloadavg()[0]:.1f}, {experts} experts; medians of "
        f"{repeats} repeats, in parentheses the quartiles of the loop's time over ours\n"
    )
    print("| layer | difference | loop ms | loop, mixed once ms | grouped ms | ratio | to mixed once | target |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        loop_ms, mixed_ms, grouped_ms = (statistics.median(row.seconds[method]) * 1e3 for method in METHODS)
        ratios = [a / b for a, b in zip(row.seconds["loop"], row.seconds["grouped"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        print(
            f"| {row.name} | {row.difference:.1e} | {loop_ms:.1f} | {mixed_ms:.1f} | {grouped_ms:.1f} | "
            f"{row.ratio('loop'):.2f}x ({low:.2f}-{high:.2f}) | {row.ratio('loop, mixed once'):.2f}x | "
            f"{f'{TARGET}x' if row.deep else '-'} |"
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15, help="2 or more, for quartiles")
    parser.add_argument("--experts", type=int, default=6, help="personal models and the global one; 6 = leave one out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a deep layer misses the target")
    parser.add_argument("--shrink", type=int, default=1, help="divide batch (to 2 at least) and channels by this")
    settings = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # strict float32 on every side
    numbers = {"experts": settings.experts, "repeats": settings.repeats, "device": settings.device}
    layers = [(max(2, b // settings.shrink), c // settings.shrink, side, deep) for b, c, side, deep in LAYERS]
    rows = [measure(*layer, **numbers) for layer in layers]
    print_table(rows, **numbers)
    if max(row.difference for row in rows) > 1e-4:
        print("the methods differ by more than 1e-4 of the maximum: the times are not valid", file=sys.stderr)
        return 1
    missed = [row for row in rows if row.deep and row.ratio("loop") < TARGET]
    return 1 if settings.check and missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
