# SPDX-License-Identifier: Apache-2.0
"""Facts of the files and labels of a split (channels, gray levels, spacing, shares), and warnings about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from fedmonai.data.cases.read import is_nifti, read_case_file
from fedmonai.data.kspace.read import open_volume, own_dataset
from fedmonai.data.pictures import open_picture
from fedmonai.data.weak.read import IMAGE_KEY, read_dataset

__all__ = ["FileFacts", "SplitFacts", "case_facts", "kspace_facts", "picture_facts", "site_shifts", "weak_facts"]

_COLORED = 4  # mean difference of the color channels in gray levels; JPEG causes up to 2 in a gray picture
_CLEAR = 0.005  # share of the pixels from which a gray level of a mask is a class, not an edge
_APART = 12  # gray levels that lossy compression keeps apart


@dataclass(frozen=True)
class FileFacts:
    """Facts of one image file, as it is stored.

    Attributes:
        channels: color channels that differ, coils, or planes of the image.
        read_channels: channels that the network gets of them, None if these are not compared.
        low: least value.
        high: largest value.
        spacing: (row, column, slice) in mm.
        contrast: name of the acquisition in the file.
        levels: gray levels of a mask picture that cover more than their edges.
        read_levels: classes that are made of them, None where every level has its own.
    """

    channels: int
    low: float
    high: float
    read_channels: int | None = None
    spacing: tuple[float, ...] | None = None
    contrast: str | None = None
    levels: tuple[int, ...] = ()
    read_levels: int | None = None


def kspace_facts(volume: Mapping[str, object]) -> FileFacts:
    """Facts of an entry of :func:`~fedmonai.data.kspace.list.kspace_volumes`; values are those of the target."""
    with open_volume(str(volume["kspace"])) as file:
        kspace = own_dataset(file, "kspace")
        shape: tuple[int, ...] = () if kspace is None else kspace.shape
        spacing = np.asarray(file.attrs.get("spacing", ()), float).ravel()
        acquisition = file.attrs.get("acquisition")
        high = np.asarray(file.attrs.get("max", np.nan), float).ravel()
        return FileFacts(
            channels=int(shape[1]) if len(shape) == 4 else 1,
            low=0.0,
            high=float(high[0]) if high.size else float("nan"),
            spacing=(float(spacing[1]), float(spacing[2]), float(spacing[0])) if spacing.size == 3 else None,
            contrast=acquisition if isinstance(acquisition, str) and acquisition.isidentifier() else None,
        )


def case_facts(case: Mapping[str, str]) -> FileFacts:
    """Facts of an entry of :func:`~fedmonai.data.cases.list.prostate_cases`; picture masks become two classes."""
    if not is_nifti(case["image"]):
        return picture_facts(case["image"], case.get("label"), 1, 2)
    volume = read_case_file(case["image"], orientation=None)
    return FileFacts(1, float(volume.values.min()), float(volume.values.max()), spacing=volume.spacing)


def weak_facts(entry: Mapping[str, str], image_channels: int | None, threshold: int | None) -> FileFacts:
    """Facts of an entry of :func:`~fedmonai.data.weak.list.weak_files`."""
    if "mask" in entry:
        return picture_facts(entry["image"], entry["mask"], image_channels, None if threshold is None else 2)
    with open_volume(entry["image"]) as file:
        image = read_dataset(file, IMAGE_KEY)[()]
        volume = all(read_dataset(file, key).ndim == 3 for key in file if key != IMAGE_KEY)
    channels = 1 if image.ndim == 2 or volume else int(image.shape[0])
    return FileFacts(channels, float(image.min()), float(image.max()), image_channels)


def picture_facts(image: str, mask: str | None, read_channels: int | None, read_levels: int | None) -> FileFacts:
    """Facts of a picture and its mask.

    Raises:
        ConfigError: a file that cannot be read.
    """
    with open_picture(image) as picture:
        values = np.asarray(picture if picture.mode in ("L", "I", "I;16", "F") else picture.convert("RGB"))
    channels = 1
    if values.ndim == 3:
        colors = values.astype(np.int16)
        channels = 3 if np.abs(colors - colors.mean(-1, keepdims=True)).mean() > _COLORED / 2 else 1
    levels: tuple[int, ...] = ()
    if mask is not None:
        with open_picture(mask) as picture:
            levels = clear_levels(np.asarray(picture.convert("L")))
    return FileFacts(channels, float(values.min()), float(values.max()), read_channels, None, None, levels, read_levels)


def clear_levels(mask: np.ndarray) -> tuple[int, ...]:
    """The gray levels of a mask that cover areas; what lies between two of them is an edge or compression.

    >>> clear_levels(np.repeat(np.array([[0, 1, 128, 255]], np.uint8), 50, 0))
    (0, 128, 255)
    """
    counts = np.bincount(mask.ravel(), minlength=256)
    kept: list[int] = []
    for level in np.argsort(-counts, kind="stable"):
        if counts[level] < _CLEAR * mask.size:
            break
        if all(abs(int(level) - other) >= _APART for other in kept):
            kept.append(int(level))
    return tuple(sorted(kept))


@dataclass
class SplitFacts:
    """Facts of the files and the labels of one split.

    Attributes:
        files: facts of every file.
        pixels: number of pixels by label, as the network is trained on; empty for images as targets.
        unlabeled: the label that means unlabeled, None without one.
        sizes: (rows, columns) of what the network gets.
        volumes: number of volumes.
    """

    files: list[FileFacts] = field(default_factory=list)
    pixels: dict[int, int] = field(default_factory=dict)
    unlabeled: int | None = None
    sizes: set[tuple[int, int]] = field(default_factory=set)
    volumes: int = 0

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Median spacing in mm."""
        known = [facts.spacing for facts in self.files if facts.spacing is not None]
        return tuple(median(lengths) for lengths in zip(*known, strict=True)) if known else None

    @property
    def contrasts(self) -> set[str]:
        return {facts.contrast for facts in self.files if facts.contrast is not None}

    @property
    def shares(self) -> dict[int, float]:
        """Share of each class in the labeled pixels."""
        labeled = {label: count for label, count in self.pixels.items() if label != self.unlabeled}
        total = sum(labeled.values())
        return {label: count / total for label, count in sorted(labeled.items())} if total else {}

    def file_text(self) -> str:
        """Channels, values, spacing and contrast in one line."""
        channels = ", ".join(map(str, sorted({facts.channels for facts in self.files})))
        values = [value for facts in self.files for value in (facts.low, facts.high) if np.isfinite(value)]
        parts = [f"{channels} channel(s)"]
        if values:
            parts.append(f"values {min(values):.4g} to {max(values):.4g}")
        if self.spacing is not None:
            parts.append("spacing " + " x ".join(f"{length:.3g}" for length in self.spacing) + " mm (median)")
        if levels := {level for facts in self.files for level in facts.levels}:
            parts.append("gray levels of masks " + ", ".join(map(str, sorted(levels))))
        return ", ".join([*parts, *sorted(self.contrasts)])

    def label_text(self) -> str:
        """Share of each class, and of unlabeled pixels in all of them."""
        text = ", ".join(f"class {label} {share:.2%}" for label, share in self.shares.items())
        if self.unlabeled is None:
            return text
        unlabeled = self.pixels.get(self.unlabeled, 0) / max(1, sum(self.pixels.values()))
        return f"{text or 'no class'} of the labeled pixels; {unlabeled:.2%} of all are unlabeled"

    def file_warning(self) -> str:
        """Warning about how the files are read; empty if there is none."""
        said = []
        if any(facts.channels == 3 and facts.read_channels == 1 for facts in self.files):
            said.append("pictures in color are read as gray: one channel; is this overlay meant for other images?")
        merged = [facts for facts in self.files if facts.read_levels and len(facts.levels) > facts.read_levels]
        if merged:
            levels = ", ".join(map(str, merged[0].levels))
            said.append(
                f"two classes are made of masks with {len(merged[0].levels)} gray levels ({levels}), in "
                f"{len(merged)} of {len(self.files)} files; give every level its class (label_map) if they mean several"
            )
        if len({facts.channels for facts in self.files}) > 1:
            said.append("files have different numbers of channels")
        return "; ".join(said)

    def label_warning(self, classes: int | None) -> str:
        """Warning about the labels; empty if there is none.

        Args:
            classes: number of classes that there should be.
        """
        said = []
        shares = self.shares
        if self.pixels and not shares:
            said.append("no pixel has a label")
        missing = [str(label) for label in range(classes or 0) if not shares.get(label)]
        if shares and missing:
            said.append(f"no pixel of class {', '.join(missing)}")
        if shares and self.unlabeled is None and max(shares, key=lambda label: shares[label]) != 0:
            most = max(shares, key=lambda label: shares[label])
            said.append(f"class {most} covers more than the background, class 0: are masks the other way round?")
        return "; ".join(said)


_SPACING, _SHARE, _VALUES = 1.5, 3.0, 10.0  # ratios from which two sites are said to differ


def site_shifts(sites: Mapping[str, SplitFacts]) -> list[str]:
    """How sites differ in what matters for one network: contrast, spacing, size, label shares, channels, values.

    >>> bright = SplitFacts([FileFacts(1, 0, 4000, spacing=(1, 1, 3))])
    >>> dark = SplitFacts([FileFacts(1, 0, 90, spacing=(0.5, 0.5, 3))])
    >>> for line in site_shifts({"A": bright, "B": dark}): print(line)
    spacing: A 1 x 1 x 3, B 0.5 x 0.5 x 3 mm
    largest value: A 4e+03, B 90

    Args:
        sites: name to facts of the training split.
    """
    said = []
    for name, values in (
        ("contrast", {site: ", ".join(sorted(facts.contrasts)) for site, facts in sites.items() if facts.contrasts}),
        ("size", {site: ", ".join(f"{h} x {w}" for h, w in sorted(facts.sizes)) for site, facts in sites.items()}),
        ("channels", {site: ", ".join(_channels(facts)) for site, facts in sites.items() if facts.files}),
    ):
        if len(set(values.values())) > 1:
            said.append(f"{name}: " + ", ".join(f"{site} {value}" for site, value in values.items()))
    spacings = {site: facts.spacing for site, facts in sites.items() if facts.spacing is not None}
    if spacings and any(_ratio(lengths) >= _SPACING for lengths in zip(*spacings.values(), strict=True)):
        listed = ", ".join(f"{site} {' x '.join(f'{v:.3g}' for v in lengths)}" for site, lengths in spacings.items())
        said.append(f"spacing: {listed} mm")
    labels = sorted({label for facts in sites.values() for label in facts.shares if label})
    for label in labels:
        shares = {site: facts.shares.get(label, 0.0) for site, facts in sites.items() if facts.pixels}
        if _ratio(shares.values()) >= _SHARE:
            said.append(
                f"share of class {label}: " + ", ".join(f"{site} {share:.2%}" for site, share in shares.items())
            )
    highest = {site: max((f.high for f in facts.files), default=float("nan")) for site, facts in sites.items()}
    highest = {site: value for site, value in highest.items() if np.isfinite(value)}
    if _ratio(highest.values()) >= _VALUES:
        said.append("largest value: " + ", ".join(f"{site} {value:.3g}" for site, value in highest.items()))
    return said


def _channels(facts: SplitFacts) -> Sequence[str]:
    return [str(count) for count in sorted({file.channels for file in facts.files})]


def _ratio(values: Iterable[float]) -> float:
    """Largest divided by smallest of numbers that are not negative; infinite where one of several is 0."""
    found = list(values)
    if len(found) < 2 or max(found) <= 0:
        return 1.0
    return max(found) / min(found) if min(found) > 0 else float("inf")
