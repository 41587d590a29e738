# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from fedmonai.data.cases.check import check_prostate
from fedmonai.data.cases.dataset import CaseSliceDataset
from fedmonai.data.cases.list import PROSTATE_SITES, prostate_cases
from fedmonai.data.cases.read import read_case_file
from fedmonai.data.generated.pelvis import PELVIC_TISSUE_NAMES, Pelvis, pelvic_signals
from fedmonai.data.generated.prostate_federation import generate_prostate_federation, generated_prostate_site
from fedmonai.data.generated.prostate_scan import LABEL_CONVENTIONS, PROSTATE_PROFILES, ProstateScan
from fedmonai.data.generated.shapes import SmoothGrid
from fedmonai.errors import ConfigError
from fedmonai.seeding import stream

SMALL = {"cases": 4, "slices": 6, "size": 64}


@pytest.fixture(scope="module")
def federation(tmp_path_factory) -> tuple[Path, float]:
    root = tmp_path_factory.mktemp("prostate") / "data"
    start = time.process_time()
    generate_prostate_federation(root, **SMALL)
    return root, time.process_time() - start


def test_the_small_federation_is_quick_complete_and_sound(federation):
    root, seconds = federation
    assert seconds < 10  # about 2 s on an idle core
    assert tuple(sorted(path.name for path in root.iterdir() if path.is_dir())) == PROSTATE_SITES
    assert check_prostate(root) == (24, [])
    for site in PROSTATE_SITES:
        names = sorted(path.name for path in (root / site).iterdir())
        assert names == sorted(
            [f"Case{n:02d}{part}.nii.gz" for n in range(4) for part in ("", "_segmentation")] + ["generated.json"]
        )
        datasets = {split: CaseSliceDataset(prostate_cases(root, site, split)) for split in ("train", "val", "test")}
        assert [len(datasets[split].cases) for split in datasets] == [2, 1, 1]
        item = datasets["train"][0]
        assert item["image"].shape == (3, 64, 64) and int(item["label"].max()) == 1
        expected = PROSTATE_PROFILES[site].field_of_view / 64
        assert item["spacing"].tolist() == pytest.approx([expected, expected, float(item["spacing"][2])], rel=1e-5)


def test_the_default_number_of_slices_covers_the_prostate():
    for site, profile in PROSTATE_PROFILES.items():
        volume = ProstateScan(profile, (0, site, "Case00")).volume(48)
        present = np.flatnonzero(volume.mask.any(axis=(0, 1)))
        assert 12 <= volume.image.shape[-1] <= 24 and volume.spacing[2] == profile.thickness
        assert np.array_equal(present, np.arange(present[0], present[-1] + 1))
        assert present[0] > 0 and present[-1] < volume.image.shape[-1] - 1


def test_masks_are_exact_at_any_size():
    """A voxel is labeled by its center, so a grid three times as fine agrees at the common centers."""
    scan = ProstateScan(PROSTATE_PROFILES["ISBI"], (1, "ISBI", "Case00"))
    coarse, fine = scan.volume(64, 5).mask, scan.volume(192, 5).mask
    differing = coarse != fine[1::3, 1::3]
    assert coarse.any() and differing.mean() < 2e-4  # centers on the border, to the precision of the spline


def test_label_conventions_outline_something_else_on_the_same_images():
    """Margin contains the gland by 6 mm (a shell of at least that thickness), the others are parts of it."""
    volumes = {name: ProstateScan(PROSTATE_PROFILES["HK"], (0, "HK", "Case00"), name) for name in LABEL_CONVENTIONS}
    found = {name: scan.volume(96, 8) for name, scan in volumes.items()}
    gland = found["prostate"].mask > 0
    for name, volume in found.items():
        assert np.array_equal(volume.image, found["prostate"].image), name
        assert volume.mask.max() == 1
    margin, central, left = (found[name].mask > 0 for name in ("margin", "central", "left"))
    assert (margin & gland).sum() == gland.sum() < margin.sum()
    steps = int(4 / found["margin"].spacing[0])  # 4 mm, for depth near a border is a distance only about
    assert margin[ndimage.binary_dilation(gland, np.ones((3, 3, 1)), iterations=steps)].mean() > 0.9
    for part in (central, left):
        assert (part & gland).sum() == part.sum() and 0.2 * gland.sum() < part.sum() < 0.8 * gland.sum()
    columns = np.arange(96)[None, :, None]  # to the left
    assert (left * columns).sum() / left.sum() > (gland * columns).sum() / gland.sum() + 2


def test_zones_stay_where_the_convention_has_them():
    profile = PROSTATE_PROFILES["ISBI"]
    masks = {n: ProstateScan(profile, (0, "ISBI", "Case00"), n).volume(64, 6).mask for n in LABEL_CONVENTIONS}
    assert {name: int(mask.max()) for name, mask in masks.items()} == {
        "prostate": 2, "left": 2, "margin": 1, "central": 1
    }  # fmt: skip
    assert np.array_equal(masks["central"] == 1, masks["prostate"] == 1)


def test_volumes_differ_by_site_as_the_profiles_say():
    voxels = {}
    for site in ("BIDMC", "UCL"):
        volumes = [ProstateScan(PROSTATE_PROFILES[site], (0, site, f"Case{n}")).volume(48, 8) for n in range(6)]
        voxels[site] = np.mean([(v.mask > 0).sum() * np.prod(v.spacing) / 1000 for v in volumes])
    assert 20 < voxels["BIDMC"] < 60 and 45 < voxels["UCL"] < 110 and voxels["UCL"] > 1.3 * voxels["BIDMC"]
    masks = {
        site: ProstateScan(PROSTATE_PROFILES[site], (0, site, "Case00")).volume(64, 6).mask for site in PROSTATE_SITES
    }
    assert {site for site, mask in masks.items() if mask.max() == 2} == {"ISBI", "ISBI_1.5"}


def test_the_rectal_coil_outshines_the_rest():
    ratios = {}
    for site in ("BIDMC", "ISBI"):
        image = ProstateScan(PROSTATE_PROFILES[site], (0, site, "Case01")).volume(96, 3).image[..., 1].astype(float)
        ratios[site] = np.percentile(image[48:], 99) / np.percentile(image[:24], 99)  # behind over in front
    assert ratios["BIDMC"] > 2.5 and ratios["ISBI"] < 2


def test_zones_have_the_contrast_of_t2():
    for field_strength in (1.5, 3.0):
        signal = dict(zip(PELVIC_TISSUE_NAMES, pelvic_signals(field_strength, 4000, 105), strict=True))
        order = ["urine", "peripheral", "glandular", "central", "stromal", "muscle", "cortex"]
        values = [signal[name] for name in order]
        assert values == sorted(values, reverse=True)
        assert signal["lesion"] < 0.6 * signal["peripheral"]


def test_tissues_fill_every_pixel():
    axis = np.linspace(-90, 90, 60, dtype=np.float32)
    shares, whole, central = Pelvis.draw(stream(0), 45, 1.0, False).tissue(SmoothGrid(axis, axis, 2.5), 2.0, 3.0)
    assert shares.min() >= 0 and np.allclose(shares.sum(0), 1, atol=1e-5)
    assert (whole > 0).sum() > ((central > 0) & (whole > 0)).sum() > 20
    inside = [
        PELVIC_TISSUE_NAMES.index(n)
        for n in ("central", "peripheral", "glandular", "stromal", "capsule", "lesion", "urethra")
    ]
    assert shares[inside].sum(0)[whole > 2].min() > 0.95


def test_a_case_depends_on_its_own_key_only(tmp_path, federation):
    root, _ = federation
    generated_prostate_site(tmp_path, "HK", cases=1, slices=6, size=64)
    for name in ("Case00.nii.gz", "Case00_segmentation.nii.gz"):
        assert np.array_equal(read_case_file(tmp_path / "HK" / name).values, read_case_file(root / "HK" / name).values)
    other = ProstateScan(PROSTATE_PROFILES["HK"], (1, "HK", "Case00")).volume(64, 6)
    assert (other.image != read_case_file(root / "HK" / "Case00.nii.gz").values).mean() > 0.5


def test_files_read_upright(federation):
    root, _ = federation
    volume = ProstateScan(PROSTATE_PROFILES["UCL"], (0, "UCL", "Case00")).volume(64, 6)
    read = read_case_file(root / "UCL" / "Case00.nii.gz")
    assert np.array_equal(read.values, volume.image) and read.spacing == pytest.approx(volume.spacing)
    assert nib.aff2axcodes(nib.load(root / "UCL" / "Case00.nii.gz").affine) == ("L", "P", "S")


def test_generation_is_done_once(federation):
    root, _ = federation
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.*")}
    assert generate_prostate_federation(root, **SMALL) == str(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.*")} == before
    manifest = json.loads((root / "HK" / "generated.json").read_text())
    assert manifest["parameters"] == {
        "generator": "prostate", "version": 2, "site": "HK", "convention": "prostate",
        "cases": 4, "slices": 6, "size": 64, "seed": 0,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="size 64 instead of 48"):
        generate_prostate_federation(root, **(SMALL | {"size": 48}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sites": ["HK", "XX"]}, "site: 'XX' is unknown"),
        ({"sites": []}, "is empty"),
        ({"sites": "HK", "cases": 0}, "cases: 0 is not allowed; give a whole number from 1 to 1000"),
        ({"sites": "HK", "size": 2.5}, "size: 2.5 is not allowed"),
        ({"sites": "HK", "cases": {"UCL": 2}}, "no number for site HK"),
        ({"sites": "HK", "convention": "gland"}, "convention: 'gland' is unknown; choose one of prostate, margin"),
    ],
)
def test_refuses_wrong_arguments(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        generate_prostate_federation(tmp_path, **settings)
    assert not list(tmp_path.iterdir())
