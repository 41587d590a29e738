# SPDX-License-Identifier: Apache-2.0
"""Description of one volume, and of all that were found, for a person who checks them before the conversion."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from fedmonai.data.convert.readers import PlaneSize, kspace_to_image, sampled
from fedmonai.data.convert.volume import Source, Volume
from fedmonai.data.damage import InputError


def subject_note(sources: Sequence[Source]) -> list[str]:
    """Number of subjects, and how many of them each rule found, with an example."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for source in sources:
        found[source.rule].setdefault(source.subject, source.identity)
    count = len({source.subject for source in sources})
    lines = [f"subjects: {count} in {len(sources)} volumes"]
    for rule, subjects in sorted(found.items()):
        volumes = sum(source.rule == rule for source in sources)
        example = next(iter(subjects.values()))
        lines.append(f"    by {rule}: {len(subjects)} in {volumes} volumes, such as '{example}'")
    return lines


def describe(volume: Volume, pad: int, max_size: int) -> list[str]:
    """Read every slice and describe shape, spacing, intensities and what is unusual, one fact per line.

    Raises:
        InputError: values that are not finite, or an image that is zero everywhere; both make a volume unusable.
    """
    rows, columns = volume.plane
    coils = "" if volume.coils is None else f" x {volume.coils} coils"
    spacing = volume.spacing
    size = "unknown" if spacing is None else " x ".join(f"{length:.3g}" for length in spacing) + " mm"
    lines = [f"{len(volume)} slices{coils} x {rows} rows x {columns} columns ({volume.domain}), spacing {size}"]
    lines.append(_intensities(volume))
    lines += size_note(volume, pad, max_size)
    if volume.domain == "kspace":
        lines += sampling_note(volume)
    return lines


def size_note(volume: Volume, pad: int, max_size: int) -> list[str]:
    """Describe how the size of the slices changes; empty if it does not."""
    if volume.domain == "kspace":
        return []
    plan = PlaneSize.plan(volume.plane, pad, max_size)
    notes = []
    if plan.reduced != plan.original:
        notes.append(f"reduced to {_by(plan.reduced)} by keeping the center of k-space (--max_size {max_size})")
    if plan.final != plan.reduced:
        notes.append(f"zero-padded to {_by(plan.final)} (--pad {pad})")
    if pad and max(plan.final) > pad:
        notes.append(
            f"size {_by(plan.final)} kept: larger than --pad {pad}, nothing is cropped (--max_size reduces it)"
        )
    return notes


def sampling_note(volume: Volume) -> list[str]:
    """Describe how much of the k-space is sampled, and whether a target exists or follows from it."""
    mask, share = sampled(volume)
    if volume.target is not None:
        return [f"k-space with its own target, {share:.1%} of the samples are not zero"]
    if mask is None and volume.mask is None:
        return ["k-space fully sampled: its root-sum-of-squares magnitude becomes the target"]
    kept = volume.mask if volume.mask is not None else mask
    columns = int(np.count_nonzero(kept))  # type: ignore[arg-type]
    pattern = "; a 2-D pattern, its zeros stay in the k-space" if share < 0.9 * columns / volume.plane[1] else ""
    return [
        f"k-space undersampled: {share:.1%} of the samples, {columns} of {volume.plane[1]} columns{pattern}; no target "
        "(inference only)"
    ]


def _intensities(volume: Volume) -> str:
    """Range and mean of the magnitude image, with numbers of negative values and empty slices."""
    low, high, total, negative = np.inf, -np.inf, 0.0, 0
    broken: list[int] = []
    empty: list[int] = []
    for index, plane in enumerate(volume.planes(), start=volume.first):
        if not np.isfinite(plane).all():
            broken.append(index)
            continue
        if volume.domain == "kspace":
            plane = kspace_to_image(plane).numpy()
        elif plane.dtype.kind == "c":
            plane = np.abs(plane)
        negative += int((plane < 0).sum())
        low, high, total = min(low, float(plane.min())), max(high, float(plane.max())), total + float(plane.mean())
        if not plane.any():
            empty.append(index)
    if broken:
        raise InputError(f"{len(broken)} slices hold values that are not finite: {_listed(broken)}")
    if len(empty) == len(volume):
        raise InputError("the image is zero everywhere")
    line = f"intensity {low:.4g} to {high:.4g}, mean {total / len(volume):.4g}"
    if negative:
        line += f"; {negative} negative values, their magnitude is the target"
    return line + (f"; {len(empty)} empty slices: {_listed(empty)}" if empty else "")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _listed(indices: list[int]) -> str:
    return ", ".join(str(index) for index in indices[:10]) + (", ..." if len(indices) > 10 else "")
