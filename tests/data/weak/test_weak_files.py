# SPDX-License-Identifier: Apache-2.0
"""File lists: layouts, held-out parts, and what is said when a folder does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmonai.data.weak.list import paired_files, release_files, volume_files
from fedmonai.errors import ConfigError


def touch(folder: Path, names: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def names_of(files: list[dict[str, str]]) -> list[str]:
    return [entry["volume"] for entry in files]


def test_release_layout_with_a_held_out_part(tmp_path: Path) -> None:
    site = tmp_path / "Domain2"
    touch(site / "train", [f"{n}.h5" for n in range(10)] + ["notes.txt", ".hidden.h5"])
    touch(site / "test", ["a.h5", "b.h5"])
    train, val = (names_of(release_files(site, split)) for split in ("train", "val"))
    assert len(val) == 2
    assert sorted(train + val) == [str(n) for n in range(10)]
    assert names_of(release_files(site, "test")) == ["a", "b"]
    assert val == names_of(release_files(site, "val"))
    assert any(val != names_of(release_files(site, "val", seed=seed)) for seed in range(1, 5))


def test_validation_folder_is_used_where_there_is_one(tmp_path: Path) -> None:
    touch(tmp_path / "Domain1" / "train", ["a.h5", "b.h5"])
    touch(tmp_path / "Domain1" / "val", ["c.h5"])
    assert names_of(release_files(tmp_path / "Domain1", "val")) == ["c"]
    assert names_of(release_files(tmp_path / "Domain1", "train")) == ["a", "b"]


def test_a_further_file_moves_no_other_between_test_and_train(tmp_path: Path) -> None:
    names = [f"s{n}.png" for n in range(20)]
    images, masks = touch(tmp_path / "i", names), touch(tmp_path / "m", names)
    before = {split: set(names_of(paired_files(images, masks, split))) for split in ("train", "val", "test")}
    assert [len(before[split]) for split in ("train", "val", "test")] == [12, 4, 4]
    assert len(set.union(*before.values())) == 20
    touch(images, ["zz.png"])
    touch(masks, ["zz.png"])
    after = {split: set(names_of(paired_files(images, masks, split))) for split in ("train", "val", "test")}
    moved = sum(len(before[split] - after[split]) for split in before)
    assert moved <= 2  # at most the files at the two borders


def test_pairs_match_by_stem_whatever_the_ending(tmp_path: Path) -> None:
    images, masks = touch(tmp_path / "i", ["a.jpg", "b.JPG"]), touch(tmp_path / "m", ["a.png", "b.png"])
    files = paired_files(images, masks, "train", 0.0, 0.0)
    assert [(Path(f["image"]).name, Path(f["mask"]).name) for f in files] == [("a.jpg", "a.png"), ("b.JPG", "b.png")]
    touch(images, ["c.png"])
    with pytest.raises(ConfigError, match=r"no mask for .*c\.png"):
        paired_files(images, masks, "train")
    touch(masks, ["c.png", "c.bmp"])
    with pytest.raises(ConfigError, match="belong to one image"):
        paired_files(images, masks, "train")


def test_all_volumes_of_a_subject_fall_into_one_split(tmp_path: Path) -> None:
    touch(tmp_path, [f"patient{n:03d}_frame{frame:02d}.h5" for n in range(10) for frame in (1, 12)])
    parts = [names_of(volume_files(tmp_path, split)) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [12, 4, 4]
    subjects = [{name.split("_")[0] for name in part} for part in parts]
    assert not subjects[0] & subjects[1]
    assert not subjects[0] & subjects[2]
    assert not subjects[1] & subjects[2]


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Domain7/train is not a folder; expected .*Domain7/<train"):
        release_files(tmp_path / "Domain7", "train")
    with pytest.raises(ConfigError, match="split: 'validation' is unknown"):
        release_files(tmp_path, "validation")
    touch(tmp_path, ["a.txt"])
    with pytest.raises(ConfigError, match=r"holds no \.h5"):
        volume_files(tmp_path, "train")
    touch(tmp_path, ["a.h5"])
    with pytest.raises(ConfigError, match=r"split .val. of .* is empty"):
        volume_files(tmp_path, "val")
    with pytest.raises(ConfigError, match="below 1 together"):
        volume_files(tmp_path, "val", 0.6, 0.5)
