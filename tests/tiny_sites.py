# SPDX-License-Identifier: Apache-2.0
"""Sites as small as can be, one kind for each kind of data that bundles train on, and tiny federations of them.

The kind of a bundle is found from its ``train.json``: the room of :mod:`fedmonai.data` that its dataset comes from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
from monai.bundle import ConfigParser

from fedmonai.transforms.weak_labels import ANNOTATIONS, weak_labels

ROOT = Path(__file__).parents[1] / "bundles"


def bundles_in(root: Path) -> list[Path]:
    """The bundles of a collection."""
    return sorted(path.parent.parent for path in root.glob("*/configs/metadata.json"))


BUNDLES = bundles_in(ROOT)

SPLITS = ("train", "val", "test")
COMMON = {"base_channels": 2, "batch_size": 4, "device": "cpu"}


@dataclass(frozen=True)
class TinySite:
    """How to make a site's data, and the ids that make a bundle small.

    Attributes:
        write: ``write(root, bad)`` fills a folder; ``bad`` is ``None`` or a key of ``bad_files``, whose training case
            is then spoilt and must be named in the error by the text given there.
        duplicate: puts a training image into the test split under the name 'other'; returns its name in training.
        ids: ids of ``train.json`` that fit the data and keep the network small.
        bad_files: what a site's error names, by the way in which a file is bad.
    """

    write: Callable[[Path, str | None], None]
    duplicate: Callable[[Path], str]
    ids: dict[str, Any]
    bad_files: dict[str, str]


def write_volume(path: Path, images: np.ndarray) -> None:
    """A volume (slices, rows, columns) with the k-space that belongs to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shifted = np.fft.ifftshift(images, axes=(-2, -1))
    kspace = np.fft.fftshift(np.fft.fft2(shifted, norm="ortho"), axes=(-2, -1)).astype(np.complex64)
    with h5py.File(path, "w") as stream:
        stream["kspace"], stream["reconstruction_esc"] = kspace, images.astype(np.float32)
        stream.attrs["max"], stream.attrs["norm"] = images.max(), np.linalg.norm(images)


def write_kspace(path: Path, generator: np.random.RandomState, shape: tuple[int, ...] = (4, 32, 32)) -> None:
    """A volume of noise."""
    write_volume(path, generator.rand(*shape).astype(np.float32))


def write_mr_sites(root: Path, shapes: Mapping[str, tuple[int, int, int]]) -> None:
    """Sites with a volume of each split: noise on a bright center; ``shapes`` are (slices, rows, columns) by site."""
    generator = np.random.RandomState(0)
    for site, shape in shapes.items():
        for split in SPLITS:
            images = generator.rand(*shape).astype(np.float32) + np.outer(*(np.hanning(n) for n in shape[1:]))
            write_volume(root / site / split / f"{site}{split}.h5", images)


def write_mr_site(root: Path, bad: str | None = None) -> None:
    generator = np.random.RandomState(0)
    for split in SPLITS:
        write_kspace(root / split / f"{split}.h5", generator)
    path = root / "train" / "train.h5"
    if bad == "empty":
        path.unlink()
    elif bad == "unreadable":
        path.write_bytes(b"not hdf5 at all")
    elif bad == "misshapen":
        write_kspace(path, generator, (32, 32))


def write_prostate_site(root: Path, bad: str | None = None) -> None:
    """Three cases, one for each split: a bright box (1 and 2) in noise, 5 slices of 32 x 32 with 3 of them labeled."""
    generator = np.random.RandomState(0)
    root.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-0.6, -0.6, 3.0, 1.0])
    for split in SPLITS:
        label = np.zeros((32, 32, 5), np.uint8)
        label[10:22, 8:24, 1:4] = 1
        label[10:22, 8:14, 1:4] = 2
        image = (generator.rand(32, 32, 5) + 2 * (label > 0)).astype(np.float32)
        if split == "train" and bad == "misshapen":
            label = label[:-1]
        nib.save(nib.Nifti1Image(image, affine), root / f"{split}.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), root / f"{split}_segmentation.nii.gz")
        (root / f"{split}.txt").write_text(f"{split}\n")
    if bad == "empty":
        (root / "train.txt").write_text("")
    elif bad == "unreadable":
        (root / "train.nii.gz").write_bytes(b"not nifti at all")


def write_weak_site(root: Path, bad: str | None = None) -> None:
    """Four training pictures and two each to validate and test: a dark disc in noise, with every weak label."""
    generator = np.random.RandomState(0)
    rows, columns = np.mgrid[:32, :32]
    for split, count in zip(SPLITS, (4, 2, 2), strict=True):
        (root / split).mkdir(parents=True)
        for number in range(count):
            center, radius = generator.uniform(13, 18, 2), generator.uniform(6, 9)
            mask = (np.hypot(rows - center[0], columns - center[1]) < radius).astype(np.uint8)
            image = (0.3 * generator.rand(32, 32) + 0.6 * (mask == 0)).astype(np.float32)
            labels = {"mask": mask, **(weak_labels(mask, ANNOTATIONS, 2) if split == "train" else {})}
            with h5py.File(root / split / f"{split}{number}.h5", "w") as stream:
                stream["image"] = image if bad != "misshapen" or split != "train" else image[None].repeat(3, 0)
                for annotation, label in labels.items():
                    stream[annotation] = label
    if bad == "empty":
        for path in (root / "train").iterdir():
            path.unlink()
    elif bad == "unreadable":
        (root / "train" / "train0.h5").write_bytes(b"not hdf5 at all")


def copy_volume(root: Path) -> str:
    """The k-space under another name; neither its target nor its attributes."""
    with h5py.File(root / "train" / "train.h5") as old, h5py.File(root / "test" / "other.h5", "w") as new:
        new["kspace"], new["reconstruction_esc"] = old["kspace"][()], 2 * old["reconstruction_esc"][()]
        new.attrs["max"], new.attrs["norm"] = 2 * old.attrs["max"], 2 * old.attrs["norm"]
    return "train"


def copy_case(root: Path) -> str:
    """Image and mask as other numbers in files that are not compressed."""
    for ending in ("", "_segmentation"):
        old = nib.load(root / f"train{ending}.nii.gz")
        nib.save(nib.Nifti1Image(old.get_fdata(), old.affine), root / f"other{ending}.nii")
    with open(root / "test.txt", "a") as stream:
        stream.write("other\n")
    return "train"


def copy_picture(root: Path) -> str:
    """The image with no label but its mask."""
    with h5py.File(root / "train" / "train1.h5") as old, h5py.File(root / "test" / "other.h5", "w") as new:
        new["image"], new["mask"] = old["image"][()], old["mask"][()]
    return "train1"


MR = TinySite(
    write_mr_site,
    copy_volume,
    {**COMMON, "resolution": 32, "sequence": None},
    {"empty": "train", "unreadable": "train.h5", "misshapen": "train.h5"},
)
PROSTATE = TinySite(
    write_prostate_site,
    copy_case,
    {**COMMON, "num_pool": 2, "folder": "."},
    {"empty": "train", "unreadable": "train.nii.gz", "misshapen": "train_segmentation.nii.gz"},
)
WEAK = TinySite(
    write_weak_site,
    copy_picture,
    {"image_size": 32, "batch_size": 2, "channels": [2, 2, 2, 2, 16], "head_channels": 2, "device": "cpu"},
    {"empty": "train", "unreadable": "train0.h5", "misshapen": "train0.h5"},
)
#: by the room of fedmonai.data
KINDS = {"kspace": MR, "cases": PROSTATE, "weak": WEAK}


def tiny_site(bundle: Path) -> TinySite:
    """The kind of site that a bundle trains on."""
    dataset = json.dumps(ConfigParser.load_config_file(bundle / "configs" / "train.json")["train"]["dataset"])
    kinds = [kind for room, kind in KINDS.items() if f'"fedmonai.data.{room}.' in dataset]
    assert kinds, f"{bundle}: train::dataset is {dataset}; tests/tiny_sites.py writes data for {', '.join(KINDS)}"
    return kinds[0]


def tiny_ids(bundle: Path) -> dict[str, Any]:
    """The ids that make a site of this bundle small, those that it has."""
    known = ConfigParser.load_config_file(bundle / "configs" / "train.json")
    return {key: value for key, value in tiny_site(bundle).ids.items() if key in known}


def tiny_data(bundle: Path, root: Path, bad: str | None = None) -> Path:
    """The folder of a tiny site for this bundle below ``root``, written once for all bundles of a kind."""
    kind = tiny_site(bundle)
    folder = root / f"{kind.write.__name__}_{bad or 'good'}"
    if not folder.exists():
        kind.write(folder, bad)
    return folder


def tiny_metrics(bundle: Path) -> set[str]:
    """Names of what the bundle measures on a validation split."""
    parser = ConfigParser(ConfigParser.load_config_file(bundle / "configs" / "train.json"))
    return {
        name for key in ("key_metric", "additional_metrics") for name in parser.get_parsed_content(f"validate::{key}")
    }


def tiny_federation_ids(bundle: Path, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Overrides of ``federated.yaml``: tiny sites in ``folders`` in place of the bundle's own ones.

    What names the bundle's own sites names the tiny ones instead, and what the bundle's demo consents to is consented
    to here, for these data are generated, too.
    """
    config = ConfigParser.load_config_file(bundle / "configs" / "federated.yaml")
    demo = ConfigParser.load_config_file(bundle / "configs" / "demo.yaml")
    names = dict(zip(config["sites"], folders, strict=False))
    ids: dict[str, Any] = {key: value for key, value in demo.items() if isinstance(value, bool)}
    for key, value in config.items():
        if isinstance(value, str) and value in config["sites"]:
            ids[key] = names.get(value, next(iter(folders)))
        elif isinstance(value, Mapping) and value and set(value) <= set(config["sites"]) and key != "sites":
            ids[key] = {names[name]: inner for name, inner in value.items() if name in names}
    ids["sites"] = {name: {"dataset_dir": str(folder)} for name, folder in folders.items()}
    return ids | {f"local::{key}": value for key, value in tiny_ids(bundle).items()}
