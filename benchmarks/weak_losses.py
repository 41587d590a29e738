# SPDX-License-Identifier: Apache-2.0
"""Losses of FedICRA against the plain ways to compute them, in one process and one run; prints a markdown table.

    python benchmarks/weak_losses.py [--batch 12] [--size 256] [--repeats 3] [--check]

Peers: the gated CRF as unfolded neighborhoods (the form of the public program), one scipy minimum spanning tree (and
breadth-first order) after another, a training step without site contrast. Results are compared before anything is
timed. Times are CPU seconds of one thread, the smallest of all repeats, sides alternately; memory is the growth of the
resident set, each side in a fresh process. ``--check`` ends with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import scipy
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from torch import Tensor
from torch.nn import functional

from fedmonai.data.generated.octa import OCTA_SITES, draw_octa
from fedmonai.losses.gated_crf import GatedCRFLoss
from fedmonai.losses.partial_cross_entropy import PartialCrossEntropyLoss
from fedmonai.losses.site_contrast import SiteContrastLoss
from fedmonai.losses.spanning_tree import edge_costs, grid_edges, minimum_spanning_trees, root_forest
from fedmonai.losses.tree_energy import TreeEnergyLoss
from fedmonai.losses.tree_kernel import kernel
from fedmonai.networks.channel_selection_unet import ChannelSelectionUNet

SMOKE = ["--batch", "2", "--size", "32", "--repeats", "2"]


@dataclass
class Row:
    """One comparison; ``limit`` bounds ``ratio`` from below (speed-ups) or above (cost of a step, memory)."""

    name: str
    peer: float
    ours: float
    unit: str
    ratio: float
    target: str
    met: bool

    def __str__(self) -> str:
        verdict = "met" if self.met else "MISSED"
        numbers = f"{self.peer:.3g} {self.unit} | {self.ours:.3g} {self.unit} | {self.ratio:.2f}"
        return f"| {self.name} | {numbers} | {self.target} | {verdict} |"


def main(arguments: list[str] | None = None) -> int:
    """Run all comparisons and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="exit code 1 if a target is missed")
    settings = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = crf_rows(settings.batch, settings.size, settings.repeats)
    rows += tree_rows(settings.batch, settings.size, settings.repeats)
    rows += step_rows(settings.repeats)
    versions = f"torch {torch.__version__}, numpy {np.__version__}, scipy {scipy.__version__}"
    print(f"{settings.batch} x {settings.size} x {settings.size}, {versions}, {platform.machine()}, 1 thread\n")
    print("| work | peer | ours | ratio | target | |\n|---|---|---|---|---|---|")
    print("\n".join(map(str, rows)))
    seconds = tree_energy_seconds(settings.batch, settings.size, settings.repeats)
    text = ", ".join(f"{value:.2f} s ({backend})" for backend, value in seconds.items())
    print(f"\nTree energy with 3 embeddings, forward and backward: {text}")
    return int(settings.check and not all(row.met for row in rows))


def timed(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Smallest CPU seconds of each side; sides alternate, and one warm-up round is not counted."""
    best = dict.fromkeys(sides, float("inf"))
    for repeat in range(repeats + 1):
        for name, work in sides.items():
            start = time.process_time()
            work()
            if repeat:
                best[name] = min(best[name], time.process_time() - start)
    return best


def crf_rows(batch: int, size: int, repeats: int) -> list[Row]:
    """Shift form against unfold form: same gradient, time and memory of forward and backward."""
    small = crf_input(1, 48)
    shift_gradient, unfold_gradient = (crf_gradient(form, small) for form in (GatedCRFLoss(), unfolded_crf))
    difference = float((shift_gradient - unfold_gradient).abs().max() / unfold_gradient.abs().max())
    assert difference < 1e-5, f"gradients differ by {difference:.1e}"
    inputs = crf_input(batch, size)
    best = timed(
        {"unfold": lambda: crf_gradient(unfolded_crf, inputs), "shift": lambda: crf_gradient(GatedCRFLoss(), inputs)},
        repeats,
    )
    ratio = best["unfold"] / best["shift"]
    unfold_memory, shift_memory = (memory_growth(form, batch, size) for form in ("unfold", "shift"))
    return [
        Row("gated CRF, time", best["unfold"], best["shift"], "s", ratio, ">= 10", ratio >= 10),
        Row("gated CRF, memory", unfold_memory, shift_memory, "MB", unfold_memory / max(shift_memory, 0.1), "<= 100 MB",
            shift_memory <= 100),
    ]  # fmt: skip


def crf_input(batch: int, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 2, size, size, generator=generator), torch.rand(batch, 1, size, size, generator=generator)


def crf_gradient(form: Callable[[Tensor, Tensor], Tensor], inputs: tuple[Tensor, Tensor]) -> Tensor:
    logits = inputs[0].clone().requires_grad_()
    form(logits, inputs[1]).backward()
    assert logits.grad is not None
    return logits.grad


def unfolded_crf(logits: Tensor, image: Tensor, radius: int = 5) -> Tensor:
    """All neighbors of all pixels in one tensor, black and without a class outside of the image."""
    probability = logits.softmax(1)
    batch, _, height, width = probability.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    position = torch.stack([rows, columns]).float().expand(batch, -1, -1, -1) / 6.0
    window = 2 * radius + 1

    def neighbors(values: Tensor) -> Tensor:
        return functional.unfold(values, window, padding=radius).view(batch, -1, window * window, height, width)

    with torch.no_grad():
        features = torch.cat([position, image / 0.1], 1)
        kernel = (-0.5 * (neighbors(features) - features[:, :, None]) ** 2).sum(1).exp()
        kernel[:, window * window // 2] = 0
    agreement = (neighbors(probability) * probability[:, :, None]).sum(1)
    return (kernel * (1 - agreement)).sum() / (batch * height * width)


def memory_growth(form: str, batch: int, size: int) -> float:
    """Megabytes by which the largest resident set of a fresh process grows during forward and backward."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_grow, form, batch, size).result()


def _grow(form: str, batch: int, size: int) -> float:
    torch.set_num_threads(1)
    loss = GatedCRFLoss() if form == "shift" else unfolded_crf
    crf_gradient(loss, crf_input(1, 16))
    inputs = crf_input(batch, size)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    crf_gradient(loss, inputs)
    return (resident("VmHWM") - before) / 1024


def resident(field: str) -> int:
    """Kilobytes of the resident set now (``VmRSS``) or at its peak (``VmHWM``); Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def tree_rows(batch: int, size: int, repeats: int) -> list[Row]:
    """All trees of a batch (image and three embeddings) against one scipy tree after another."""
    costs = torch.cat([edge_costs(features) for features in tree_features(batch, size)])
    first, second = grid_edges(size, size).numpy()

    def graph(weights: np.ndarray) -> csr_matrix:
        return csr_matrix((weights.astype(np.float64) + 1, (first, second)), shape=(size * size,) * 2)

    def peer_trees() -> list[csr_matrix]:
        return [minimum_spanning_tree(graph(weights)) for weights in costs.numpy()]

    def rooted() -> object:
        in_tree = minimum_spanning_trees(costs, size, size)
        return [root_forest(part, size, size) for part in in_tree.split(batch)]

    ours = (costs.double() * minimum_spanning_trees(costs, size, size)).sum(1)
    peer = torch.tensor([tree.sum() - tree.nnz for tree in peer_trees()], dtype=torch.float64)
    assert torch.allclose(ours, peer, rtol=1e-6), "total weights differ"
    best = timed(
        {
            "peer": peer_trees,
            "ours": lambda: minimum_spanning_trees(costs, size, size),
            "peer rooted": lambda: [breadth_first_order(tree, 0, directed=False) for tree in peer_trees()],
            "ours rooted": rooted,
        },
        repeats,
    )
    rows = []
    for suffix in ("", " rooted"):
        name = f"{len(costs)} spanning trees" + (", rooted" if suffix else "")
        ratio = best["peer" + suffix] / best["ours" + suffix]
        rows.append(Row(name, best["peer" + suffix], best["ours" + suffix], "s", ratio, ">= 1.5", ratio >= 1.5))
    return rows


def tree_features(batch: int, size: int) -> list[Tensor]:
    """Generated angiography pictures with 256 levels, three times gray, and embeddings of the three scales."""
    pictures = [draw_octa(np.random.RandomState(i), OCTA_SITES[i % 5], size)[0] for i in range(batch)]
    image = torch.from_numpy(np.round(255 * np.stack(pictures)) / 255).expand(-1, 3, -1, -1)
    generator = torch.Generator().manual_seed(2)
    embeddings = [torch.randn(batch, 2, size // stride, size // stride, generator=generator) for stride in (4, 2, 1)]
    return [image, *(functional.interpolate(x, (size, size), mode="bilinear") for x in embeddings)]


def tree_energy_seconds(batch: int, size: int, repeats: int) -> dict[str, float]:
    """The loss and its gradients with the kernel, where it can be built, and with numpy; equal to the bit."""
    image, *embeddings = tree_features(batch, size)
    logits = torch.randn(batch, 2, size, size, requires_grad=True)
    label = torch.full((batch, 1, size, size), 2)
    inputs = [embedding.requires_grad_() for embedding in embeddings]
    backends = ("compiled", *(() if kernel() is None else ("kernel",)))
    losses = {backend: TreeEnergyLoss(2, backend=backend) for backend in backends}
    assert len({float(loss(logits, label, image, inputs).detach()) for loss in losses.values()}) == 1
    work = {name: partial(_backward, loss, logits, label, image, inputs) for name, loss in losses.items()}
    return timed(work, repeats)


def _backward(loss: TreeEnergyLoss, *arguments: object) -> None:
    loss(*arguments).backward()


def step_rows(repeats: int, batch: int = 4, size: int = 96) -> list[Row]:
    """A training step with site contrast against one without it; both compute the same outputs of the network."""
    image = torch.rand(batch, 1, size, size)
    label = torch.randint(0, 3, (batch, 1, size, size))
    networks = {passes: ChannelSelectionUNet(contrast_passes=passes).train() for passes in ("one", "per_site")}
    cross_entropy, contrast = PartialCrossEntropyLoss(2), SiteContrastLoss()

    def step(passes: str, weight: float) -> None:
        network = networks[passes]
        output = network.training_forward(image)
        loss = cross_entropy(output.logits, label)
        if weight:
            loss = loss + weight * contrast(output.gates, network.site)
        loss.backward()
        network.zero_grad(set_to_none=True)

    best = timed(
        {
            "plain": lambda: step("one", 0.0),
            "one": lambda: step("one", 1.0),
            "per_site": lambda: step("per_site", 1.0),
        },
        max(repeats, 5),
    )
    one, per_site = best["one"] / best["plain"], best["per_site"] / best["plain"]
    return [
        Row("step, contrast from one pass", best["plain"], best["one"], "s", one, "<= 1.15", one <= 1.15),
        Row("step, contrast from a forward per site", best["plain"], best["per_site"], "s", per_site, "-", True),
    ]


if __name__ == "__main__":
    sys.exit(main())
