# SPDX-License-Identifier: Apache-2.0
"""What the check of a site finds of every bundle: one image under two names in two splits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import pytest
from tiny_sites import TINY_SITES

from fedmonai.bundle.site_check import Finding, check_site, format_findings
from fedmonai.data.provenance import write_manifest

ROOT = Path(__file__).parents[2] / "bundles"


def copy_volume(site: Path) -> None:
    """The k-space under another name; neither its target nor its attributes."""
    with h5py.File(site / "train" / "train.h5") as old, h5py.File(site / "test" / "other.h5", "w") as new:
        new["kspace"], new["reconstruction_esc"] = old["kspace"][()], 2 * old["reconstruction_esc"][()]
        new.attrs["max"], new.attrs["norm"] = 2 * old.attrs["max"], 2 * old.attrs["norm"]


def copy_case(site: Path) -> None:
    """Image and mask as other numbers in files that are not compressed."""
    for ending in ("", "_segmentation"):
        old = nib.load(site / f"train{ending}.nii.gz")
        nib.save(nib.Nifti1Image(old.get_fdata(), old.affine), site / f"other{ending}.nii")
    with open(site / "test.txt", "a") as stream:
        stream.write("other\n")


def copy_picture(site: Path) -> None:
    """The image with no label but its mask."""
    with h5py.File(site / "train" / "train1.h5") as old, h5py.File(site / "test" / "other.h5", "w") as new:
        new["image"], new["mask"] = old["image"][()], old["mask"][()]


COPIES: dict[str, tuple[Callable[[Path], None], str]] = {
    "fedicra": (copy_picture, "'train1' in train and 'other' in test hold the same image data"),
    "fedmri": (copy_volume, "'train' in train and 'other' in test hold the same image data"),
    "fl_mr": (copy_volume, "'train' in train and 'other' in test hold the same image data"),
    "fl_mrcm": (copy_volume, "'train' in train and 'other' in test hold the same image data"),
    "iop_fl": (copy_case, "'train' in train and 'other' in test hold the same image data"),
}


def look(bundle: str, site: Path) -> dict[str, Finding]:
    ids = {f"local::{key}": value for key, value in TINY_SITES[bundle].ids.items()}
    own = {"sites": {"A": {"dataset_dir": str(site)}}, "output_dir": str(site.parent / "out")}
    own |= {"tensor_owners": {}} if bundle == "fedicra" else {}
    own |= {"target_site": "A", "share_features": True} if bundle == "fl_mrcm" else {}
    return {f.what: f for f in check_site(ROOT / bundle, "A", **own, **ids)}


def test_all_bundles_are_looked_at() -> None:
    assert sorted(COPIES) == sorted(TINY_SITES)


@pytest.mark.parametrize("bundle", COPIES)
def test_one_image_under_two_names_in_two_splits(bundle: str, tmp_path: Path) -> None:
    site = tmp_path / "site"
    TINY_SITES[bundle].write(site, None)
    found = look(bundle, site)
    assert all(f.good for f in found.values()), format_findings("A", list(found.values()))
    assert found["splits"].found.startswith("no image data or subject in two splits (")
    copy, text = COPIES[bundle]
    copy(site)
    found = look(bundle, site)
    assert [name for name, f in found.items() if not f.good] == ["splits"]
    assert text in found["splits"].found


def test_manifest_in_the_folder_of_a_site(tmp_path: Path) -> None:
    site = tmp_path / "site"
    TINY_SITES["iop_fl"].write(site, None)
    cases = {s: [{"image": f"{s}.nii.gz", "label": f"{s}_segmentation.nii.gz", "subject": s}] for s in ("train", "val")}
    write_manifest(site, cases, keys=("image", "label"))
    assert look("iop_fl", site)["manifest"].found.startswith("4 files as in ")
    shutil.copy(site / "test_segmentation.nii.gz", site / "val_segmentation.nii.gz")
    (site / "val.nii.gz").write_bytes((site / "test.nii.gz").read_bytes())
    found = look("iop_fl", site)
    assert [name for name, f in found.items() if not f.good] == ["splits", "manifest"]
    assert "val.nii.gz has changed" in found["manifest"].found


def test_twice_in_one_split_is_no_leak(tmp_path: Path) -> None:
    site = tmp_path / "site"
    TINY_SITES["iop_fl"].write(site, None)
    for ending in ("", "_segmentation"):
        shutil.copy(site / f"train{ending}.nii.gz", site / f"twin{ending}.nii.gz")
    (site / "train.txt").write_text("train\ntwin\n")
    found = look("iop_fl", site)
    assert found["splits"].good and "4 volumes" in found["splits"].found
