# SPDX-License-Identifier: Apache-2.0
"""MR input pipeline: slices per second and core of a plain per-slice loader and of the cached, batched column path.

    python benchmarks/input_pipeline.py [--repeats 7] [--slices 64] [--check]

The peer opens the HDF5 file for every slice, draws the mask with numpy, multiplies, makes the 2-D inverse FFT, crops
and normalizes, inside a DataLoader without workers. Ours is ``KspaceDataset(cache="memory")`` with ``PrepareKspace``.
Both read the same random files and make the same images: their largest difference is checked before anything is timed.
Both run alternately on one thread of this process; times are CPU seconds, so other load on the machine counts little.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from monai.data import DataLoader
from torch import Tensor

from fedmonai.data.kspace.dataset import KspaceDataset, collate_slices
from fedmonai.transforms.batch import PrepareKspace
from fedmonai.transforms.masks import CartesianMask

ACCELERATION, CENTER_FRACTION, RESOLUTION, CLAMP = 4, 0.08, 256, 6.0
SMOKE = ["--repeats", "2", "--slices", "1"]
SLICES_PER_FILE = 16
TARGETS = {(256, 256): 3.0, (640, 372): 5.0}

Pair = tuple[Tensor, Tensor]


@dataclass
class Row:
    """One line of the table: CPU seconds per slice of every repeat, of both sides."""

    plane: tuple[int, int]
    batch_size: int
    difference: float
    build: float
    plain: list[float]
    ours: list[float]

    @property
    def ratio(self) -> float:
        return statistics.median(self.plain) / statistics.median(self.ours)


class PlainSlices(torch.utils.data.Dataset):
    """The peer: everything for one slice, in ``__getitem__``."""

    def __init__(self, files: list[Path], seed_from_file: bool) -> None:
        self.items = [(file, index) for file in files for index in range(SLICES_PER_FILE)]
        self.seed_from_file = seed_from_file
        self.rng = np.random.RandomState()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int) -> Pair:
        path, index = self.items[item]
        with h5py.File(path, "r") as file:
            kspace = torch.from_numpy(file["kspace"][index])
            target = torch.from_numpy(file["reconstruction_esc"][index])
        self.rng.seed(tuple(map(ord, path.name)) if self.seed_from_file else None)
        masked = kspace * torch.from_numpy(self.mask(kspace.shape[-1]))
        axes = (-2, -1)
        shifted = torch.fft.ifftshift(masked, dim=axes)
        image = crop(torch.fft.fftshift(torch.fft.ifft2(shifted, norm="ortho"), dim=axes)).abs()
        target = crop(target)
        mean, std = image.mean(), image.std()
        image = ((image - mean) / (std + 1e-11)).clamp(-CLAMP, CLAMP)
        target = ((target - mean) / (std + 1e-11)).clamp(-CLAMP, CLAMP)
        return image[None], target[None]

    def mask(self, columns: int) -> np.ndarray:
        self.rng.randint(0, 1)  # the generator also chooses among (acceleration, fraction) pairs
        low = round(columns * CENTER_FRACTION)
        mask = self.rng.uniform(size=columns) < (columns / ACCELERATION - low) / (columns - low)
        start = (columns - low + 1) // 2
        mask[start : start + low] = True
        return mask.astype(np.float32)


def crop(image: Tensor) -> Tensor:
    top, left = ((size - min(RESOLUTION, size)) // 2 for size in image.shape)
    return image[top : top + RESOLUTION, left : left + RESOLUTION]


def write_files(folder: Path, plane: tuple[int, int], slices: int) -> list[Path]:
    """Random smooth images with their k-space, as the fastMRI single-coil files hold them."""
    rng, files = np.random.default_rng(0), []
    for number in range(max(1, slices // SLICES_PER_FILE)):
        image = rng.random((SLICES_PER_FILE, *plane), dtype=np.float32)
        image += np.roll(image, 1, axis=1) + np.roll(image, 1, axis=2)
        kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, axes=(1, 2)), norm="ortho"), axes=(1, 2))
        path = folder / f"volume{number}_{plane[0]}x{plane[1]}.h5"
        with h5py.File(path, "w") as file:
            file["kspace"] = kspace.astype(np.complex64)
            file["reconstruction_esc"] = image.astype(np.float32)
        files.append(path)
    return files


def plain_batches(files: list[Path], batch_size: int, seed_from_file: bool) -> Iterator[Pair]:
    dataset = PlainSlices(files, seed_from_file)
    return iter(torch.utils.data.DataLoader(dataset, batch_size=batch_size))


def our_batches(dataset: KspaceDataset, batch_size: int, seed_from_file: bool) -> Iterator[Pair]:
    mask = CartesianMask("random", ACCELERATION, CENTER_FRACTION)
    prepare = PrepareKspace(mask, RESOLUTION, seed_from_file, CLAMP)
    for batch in DataLoader(dataset, batch_size=batch_size, collate_fn=collate_slices):
        yield prepare(batch)  # type: ignore[misc]


def largest_difference(first: Iterator[Pair], second: Iterator[Pair]) -> float:
    """Largest difference of any pixel, relative to the largest value of its batch."""
    worst = 0.0
    for ours, theirs in zip(first, second, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            worst = max(worst, ((one - other).abs().max() / other.abs().max()).item())
    return worst


def seconds_per_slice(batches: Callable[[], Iterator[Pair]]) -> float:
    start, count = time.process_time(), 0
    for image, _ in batches():
        count += len(image)
    return (time.process_time() - start) / count


def measure(files: list[Path], plane: tuple[int, int], batch_size: int, repeats: int) -> Row:
    start = time.process_time()
    volumes: list[dict[str, Any]] = [{"kspace": str(path), "volume": path.stem} for path in files]
    dataset = KspaceDataset(volumes, resolution=RESOLUTION, cache="memory")
    build = (time.process_time() - start) / len(dataset)
    difference = largest_difference(our_batches(dataset, batch_size, True), plain_batches(files, batch_size, True))
    row = Row(plane, batch_size, difference, build, [], [])
    for _ in range(repeats):
        row.plain.append(seconds_per_slice(lambda: plain_batches(files, batch_size, False)))
        row.ours.append(seconds_per_slice(lambda: our_batches(dataset, batch_size, False)))
    return row


def print_table(rows: list[Row], repeats: int) -> None:
    print(
        f"torch {torch.__version__}, {platform.machine()}, 1 thread, load {os.getloadavg()[0]:.1f}; medians of "
        f"{repeats} repeats, spread = smallest to largest ratio\n"
    )
    print("| k-space | image | batch | difference | plain slices/s | ours slices/s | ratio | spread | target | build |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        ratios = [plain / ours for plain, ours in zip(row.plain, row.ours, strict=True)]
        print(
            f"| {row.plane[0]}x{row.plane[1]} | {RESOLUTION}x{RESOLUTION} | {row.batch_size} | {row.difference:.1e} | "
            f"{1 / statistics.median(row.plain):.0f} | {1 / statistics.median(row.ours):.0f} | {row.ratio:.1f}x | "
            f"{min(ratios):.1f}-{max(ratios):.1f} | {TARGETS[row.plane]:.0f}x | {row.build * 1e3:.1f} ms/slice |"
        )
    print("\nbuild = reading a slice into the cache, once, including the FFT along its rows.")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--slices", type=int, default=64, help="slices of each k-space size, in files of 16")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    settings = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for plane in TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            files = write_files(Path(folder), plane, settings.slices)
            rows += [measure(files, plane, batch_size, settings.repeats) for batch_size in (16, 32)]
    print_table(rows, settings.repeats)
    if max(row.difference for row in rows) > 1e-5:
        print("the two pipelines differ by more than 1e-5 of the maximum: the times are not valid", file=sys.stderr)
        return 1
    missed = [row for row in rows if row.ratio < TARGETS[row.plane]]
    return 1 if settings.check and missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
