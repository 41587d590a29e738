# SPDX-License-Identifier: Apache-2.0
"""Generated fundus and angiography federations: layout, exact masks, repetition, differences between sites."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedmonai.data import WeakSliceDataset, generate_fundus_federation, generate_octa_federation, release_files
from fedmonai.data.generated.fundus import FUNDUS_SITES, draw_fundus
from fedmonai.data.generated.octa import OCTA_SITES, draw_octa
from fedmonai.errors import ConfigError
from fedmonai.transforms import WEAK_FORMS

Generate = Callable[..., str]
SMALL = {"num_train": 2, "num_val": 1, "num_test": 1, "size": 48, "progress": False}
TASKS = [(generate_fundus_federation, 3, 3), (generate_octa_federation, 1, 2)]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("generate", "channels", "classes"), TASKS)
def test_layout_of_the_release(tmp_path: Path, generate: Generate, channels: int, classes: int) -> None:
    assert generate(tmp_path, **SMALL) == str(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [*(f"Domain{n}" for n in range(1, 6)), "generated.json"]
    for domain in range(1, 6):
        for split, count in (("train", 2), ("val", 1), ("test", 1)):
            files = release_files(tmp_path, domain, split)
            assert len(files) == count
            with h5py.File(files[0]["image"]) as file:
                assert set(file) == {"image", "mask", *(WEAK_FORMS if split == "train" else ())}
                assert file["image"].shape == ((48, 48) if channels == 1 else (3, 48, 48))
                assert file["image"].dtype == np.float32
                assert np.array_equal(np.unique(file["mask"][()]), np.arange(classes))
        for form in WEAK_FORMS:
            item = WeakSliceDataset(release_files(tmp_path, domain, "train"), classes, form, channels=channels)[0]
            assert classes in item["label"].unique()


def test_repetition_and_resumption_give_the_same_bytes(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    generate_octa_federation(whole, **SMALL)
    first = contents(whole)
    generate_octa_federation(whole, **SMALL)
    assert contents(whole) == first
    generate_octa_federation(parts, **SMALL)
    (parts / "generated.json").unlink()
    (parts / "Domain3" / "train" / "octa_train_0001.h5").unlink()
    kept = (parts / "Domain1" / "val" / "octa_val_0000.h5").stat().st_mtime_ns
    generate_octa_federation(parts, **SMALL)
    assert contents(parts) == first
    assert (parts / "Domain1" / "val" / "octa_val_0000.h5").stat().st_mtime_ns == kept


def test_other_counts_leave_pictures_as_they_are_and_other_seeds_do_not(tmp_path: Path) -> None:
    few, more, other = (tmp_path / name for name in ("few", "more", "other"))
    generate_octa_federation(few, **SMALL)
    generate_octa_federation(more, **{**SMALL, "num_train": (3, 2, 2, 4, 2)})
    generate_octa_federation(other, **SMALL, seed=1)
    one, two, three = (contents(root) for root in (few, more, other))
    del one["generated.json"], three["generated.json"]
    assert all(two[name] == data for name, data in one.items())
    assert len(two) == len(one) + 4
    assert not any(three[name] == data for name, data in one.items())


def test_other_parameters_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    generate_octa_federation(tmp_path, **SMALL)
    with pytest.raises(ConfigError, match=r"size 48 \(asked: 64\); choose another folder"):
        generate_octa_federation(tmp_path, **{**SMALL, "size": 64})
    with pytest.raises(ConfigError, match=r"task octa \(asked: fundus\)"):
        generate_fundus_federation(tmp_path, **SMALL)


def test_interrupted_run_with_other_numbers_is_cleaned_and_foreign_files_are_kept(tmp_path: Path) -> None:
    generate_octa_federation(tmp_path, **{**SMALL, "num_train": 3})
    (tmp_path / "generated.json").unlink()
    generate_octa_federation(tmp_path, **SMALL)
    assert len(release_files(tmp_path, 1, "train")) == 2
    (tmp_path / "generated.json").unlink()
    foreign = tmp_path / "Domain2" / "train" / "octa_train_0000.h5"
    with h5py.File(foreign, "w") as file:
        file["image"] = [1.0]
    with pytest.raises(ConfigError, match=r"octa_train_0000\.h5 was not made here"):
        generate_octa_federation(tmp_path, **SMALL)
    with h5py.File(foreign) as file:
        assert set(file) == {"image"}


def test_unreadable_manifest_and_wrong_numbers_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"num_train is \(1, 2\)"):
        generate_octa_federation(tmp_path, num_train=(1, 2))
    with pytest.raises(ConfigError, match="size is 8"):
        generate_octa_federation(tmp_path, size=8)
    (tmp_path / "generated.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        generate_octa_federation(tmp_path)
    (tmp_path / "generated.json").write_text(json.dumps([1]))
    with pytest.raises(ConfigError, match="other parameters"):
        generate_octa_federation(tmp_path)


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
