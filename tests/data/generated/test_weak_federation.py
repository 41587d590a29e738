# SPDX-License-Identifier: Apache-2.0
"""Generated fundus and angiography federations: layout, exact masks, repetition, differences between sites."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedmonai.data.generated.fundus import FUNDUS_SITES, draw_fundus
from fedmonai.data.generated.octa import OCTA_SITES, draw_octa
from fedmonai.data.generated.weak_federation import (
    generated_fundus_site,
    generated_octa_site,
)
from fedmonai.data.weak.dataset import WeakSliceDataset
from fedmonai.data.weak.list import release_files
from fedmonai.errors import ConfigError
from fedmonai.transforms.weak_labels import ANNOTATIONS

Generate = Callable[..., str]
SMALL = {"images": (2, 1, 1), "size": 48}
TASKS = [(generated_fundus_site, 3, 3), (generated_octa_site, 1, 2)]


def contents(root: str | Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(Path(root).rglob("*.h5"))}


@pytest.mark.parametrize(("generate", "channels", "classes"), TASKS)
def test_layout_of_the_release(tmp_path: Path, generate: Generate, channels: int, classes: int) -> None:
    for domain in range(1, 6):
        site = generate(tmp_path, domain, **SMALL)
        assert site == str(tmp_path / f"Domain{domain}")
        for split, count in (("train", 2), ("val", 1), ("test", 1)):
            files = release_files(site, split)
            assert len(files) == count
            with h5py.File(files[0]["image"]) as file:
                assert set(file) == {"image", "mask", *(ANNOTATIONS if split == "train" else ())}
                assert file["image"].shape == ((48, 48) if channels == 1 else (3, 48, 48))
                assert file["image"].dtype == np.float32
                assert np.array_equal(np.unique(file["mask"][()]), np.arange(classes))
        for annotation in ANNOTATIONS:
            item = WeakSliceDataset(release_files(site, "train"), classes, annotation, image_channels=channels)[0]
            assert classes in item["label"].unique()


def test_manifest_names_parameters_and_style(tmp_path: Path) -> None:
    folder = Path(generated_octa_site(tmp_path, 2, **SMALL))
    assert folder == tmp_path / "Domain2"
    manifest = json.loads((folder / "generated.json").read_text())
    assert manifest["parameters"] == {
        "generator": "octa", "version": 1, "domain": 2, "images": [2, 1, 1], "size": 48, "seed": 0,
    }  # fmt: skip
    assert manifest["style"]["zone_radius"] == OCTA_SITES[1].zone_radius
    assert len(manifest["files"]) == 4


def test_a_picture_depends_on_its_own_number_only(tmp_path: Path) -> None:
    few = contents(generated_octa_site(tmp_path / "few", 3, **SMALL))
    more = contents(generated_octa_site(tmp_path / "more", 3, (4, 1, 1), 48))
    other = contents(generated_octa_site(tmp_path / "other", 3, **SMALL, seed=1))
    assert all(more[name] == data for name, data in few.items())
    assert len(more) == len(few) + 2
    assert not any(other[name] == data for name, data in few.items())


def test_what_is_there_is_kept_and_other_parameters_are_refused(tmp_path: Path) -> None:
    folder = Path(generated_octa_site(tmp_path, 1, **SMALL))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    generated_octa_site(tmp_path, 1, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(ConfigError, match="size 48 instead of 64"):
        generated_octa_site(tmp_path, 1, (2, 1, 1), 64)
    with pytest.raises(ConfigError, match="generator octa instead of fundus"):
        generated_fundus_site(tmp_path, 1, **SMALL)
    (tmp_path / "Domain2").mkdir()
    (tmp_path / "Domain2" / "mine.h5").touch()
    with pytest.raises(ConfigError, match="holds other data"):
        generated_octa_site(tmp_path, 2, **SMALL)


def test_wrong_numbers_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="domain: 6 is unknown"):
        generated_octa_site(tmp_path, 6)
    with pytest.raises(ConfigError, match=r"images: \(1, 2\) is not three numbers"):
        generated_octa_site(tmp_path, 1, (1, 2))
    with pytest.raises(ConfigError, match="size: 8 is outside 32 to 2048"):
        generated_fundus_site(tmp_path, 1, size=8)
    assert not any(tmp_path.iterdir())


def test_cup_lies_inside_the_disc_and_is_brighter() -> None:
    for style in FUNDUS_SITES:
        for number in range(3):
            image, mask = draw_fundus(np.random.RandomState(number), style, 96)
            assert image.dtype == np.float32
            assert image.shape == (3, 96, 96)
            assert 0 <= image.min() <= image.max() <= 1
            touching = np.zeros_like(mask, dtype=bool)
            cup = mask == 1
            for axis in (0, 1):
                for shift in (-1, 1):
                    touching |= np.roll(cup, shift, axis)
            assert not (touching & (mask == 0)).any()  # the rim is closed
            green = image[1]
            assert green[mask == 1].mean() > green[mask == 2].mean() > green[mask == 0].mean()


def test_zone_is_one_dark_piece_near_the_center() -> None:
    for style in OCTA_SITES:
        for number in range(3):
            image, mask = draw_octa(np.random.RandomState(number), style, 96)
            assert image.shape == (1, 96, 96)
            assert 0 <= image.min() <= image.max() <= 1
            assert 0.004 < mask.mean() < 0.2
            rows, columns = np.nonzero(mask)
            assert abs(rows.mean() - 47.5) < 14
            assert abs(columns.mean() - 47.5) < 14
            assert image[0][mask == 1].mean() < 0.8 * image[0][mask == 0].mean()


@pytest.mark.parametrize(("draw", "styles"), [(draw_fundus, FUNDUS_SITES), (draw_octa, OCTA_SITES)])
def test_sites_differ_more_than_pictures_of_a_site(draw: Callable, styles: tuple) -> None:
    """Mean and spread of the channels tell sites apart: distances between site means exceed the spread within."""

    def summary(image: np.ndarray) -> np.ndarray:
        return np.concatenate([image.mean((1, 2)), image.std((1, 2))])

    features = np.array(
        [[summary(draw(np.random.RandomState(number), style, 64)[0]) for number in range(4)] for style in styles]
    )
    means = features.mean(1)
    within = np.sqrt(np.square(features - means[:, None]).sum(-1).mean())
    between = [np.linalg.norm(means[a] - means[b]) for a in range(5) for b in range(a)]
    assert len(styles) == 5
    assert np.median(between) > 2 * within
