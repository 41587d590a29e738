# SPDX-License-Identifier: Apache-2.0
"""What the check of a site finds in folders of cases: a manifest that holds no more, and twins in one split."""

from __future__ import annotations

import shutil
from pathlib import Path

from stock_checks import found_at_site
from tiny_sites import ROOT, write_prostate_site

from fedmonai.data.provenance import write_manifest

BUNDLE = ROOT / "iop_fl"


def test_manifest_in_the_folder_of_a_site(tmp_path: Path) -> None:
    site = tmp_path / "site"
    write_prostate_site(site)
    cases = {s: [{"image": f"{s}.nii.gz", "label": f"{s}_segmentation.nii.gz", "subject": s}] for s in ("train", "val")}
    write_manifest(site, cases, keys=("image", "label"))
    assert found_at_site(BUNDLE, site, tmp_path)["manifest"].found.startswith("4 files as in ")
    shutil.copy(site / "test_segmentation.nii.gz", site / "val_segmentation.nii.gz")
    (site / "val.nii.gz").write_bytes((site / "test.nii.gz").read_bytes())
    found = found_at_site(BUNDLE, site, tmp_path)
    assert [name for name, f in found.items() if not f.good] == ["splits", "manifest"]
    assert "val.nii.gz has changed" in found["manifest"].found


def test_twice_in_one_split_is_no_leak(tmp_path: Path) -> None:
    site = tmp_path / "site"
    write_prostate_site(site)
    for ending in ("", "_segmentation"):
        shutil.copy(site / f"train{ending}.nii.gz", site / f"twin{ending}.nii.gz")
    (site / "train.txt").write_text("train\ntwin\n")
    found = found_at_site(BUNDLE, site, tmp_path)
    assert found["splits"].good and "no image data in two splits" in found["splits"].found
