# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from fedmonai.data.cases.list import PROSTATE_FRACTIONS, prostate_cases, prostate_pictures, write_case_lists
from fedmonai.data.partition import split_subjects
from fedmonai.errors import ConfigError


def make_site(root: Path, site: str, count: int, suffix: str = "_segmentation") -> Path:
    folder = root / site
    folder.mkdir()
    for number in range(count):
        (folder / f"Case{number:02d}.nii.gz").touch()
        (folder / f"Case{number:02d}{suffix}.nii.gz").touch()
    return folder


def names(cases) -> list[str]:
    return [case["volume"] for case in cases]


def test_cases_are_listed_with_their_masks(tmp_path):
    make_site(tmp_path, "HK", 3, suffix="_Segmentation")
    cases = prostate_cases(tmp_path, "HK", "all")
    assert names(cases) == ["Case00", "Case01", "Case02"]
    assert Path(cases[1]["image"]).name == "Case01.nii.gz"
    assert Path(cases[1]["label"]).name == "Case01_Segmentation.nii.gz"


@pytest.mark.parametrize(
    ("count", "expected"), [(12, (7, 2, 3)), (19, (12, 3, 4)), (30, (19, 5, 6)), (13, (8, 2, 3)), (4, (2, 1, 1))]
)
def test_default_shares_give_the_counts_of_the_paper(count, expected):
    assigned = list(split_subjects([f"Case{i:02d}" for i in range(count)], PROSTATE_FRACTIONS).values())
    assert tuple(assigned.count(split) for split in ("train", "val", "test")) == expected


def test_splits_are_disjoint_complete_and_seeded(tmp_path):
    make_site(tmp_path, "UCL", 13)
    parts = [names(prostate_cases(tmp_path, "UCL", split)) for split in ("train", "val", "test")]
    assert sorted(case for part in parts for case in part) == names(prostate_cases(tmp_path, "UCL", "all"))
    assert parts[0] == names(prostate_cases(tmp_path, "UCL", "train"))
    assert parts[0] != names(prostate_cases(tmp_path, "UCL", "train", seed=1))


def test_unlabeled_lists_never_name_a_mask(tmp_path):
    folder = make_site(tmp_path, "UCL", 4)
    for mask in folder.glob("*_segmentation.nii.gz"):
        mask.unlink()
    cases = prostate_cases(tmp_path, "UCL", "all", labeled=False)
    assert len(cases) == 4 and all(set(case) == {"image", "volume"} for case in cases)
    with pytest.raises(ConfigError, match=r"no mask 'Case00_segmentation.nii.gz' \(4 missing\)"):
        prostate_cases(tmp_path, "UCL", "all")


def test_sites_can_be_pooled(tmp_path):
    make_site(tmp_path, "A", 1)
    make_site(tmp_path, "B", 1)
    assert names(prostate_cases(tmp_path, ["A", "B"], "all")) == ["A_Case00", "B_Case00"]


def test_written_lists_are_followed_and_kept(tmp_path):
    folder = make_site(tmp_path, "HK", 12)
    lists = write_case_lists(tmp_path, "HK", seed=5)
    assert [len(lists[split]) for split in ("train", "val", "test")] == [7, 2, 3]
    assert names(prostate_cases(tmp_path, "HK", "val", seed=77)) == lists["val"]
    (folder / "val.txt").write_text("# chosen by hand\nCase00.nii.gz\n\n")
    (folder / "train.txt").write_text("Case01\n")
    (folder / "test.txt").write_text("Case02\n")
    assert write_case_lists(tmp_path, "HK") == {"train": ["Case01"], "val": ["Case00"], "test": ["Case02"]}
    extra = tmp_path / "mine.txt"
    extra.write_text("Case07\nCase03\n")
    assert names(prostate_cases(tmp_path, "HK", "test", case_list=extra)) == ["Case03", "Case07"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("Case99\n", "no image of case 'Case99'"), ("Case01\n", "Case01 is in 'train' as well"), ("", "is empty")],
)
def test_refuses_wrong_lists(tmp_path, content, message):
    folder = make_site(tmp_path, "HK", 3)
    (folder / "train.txt").write_text("Case01\n")
    (folder / "val.txt").write_text(content)
    (folder / "test.txt").write_text("Case02\n")
    with pytest.raises(ConfigError, match=message):
        prostate_cases(tmp_path, "HK", "val")


def test_refuses_what_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="is not a folder; expected"):
        prostate_cases(tmp_path, "HK")
    (tmp_path / "HK").mkdir()
    with pytest.raises(ConfigError, match=r"holds no \.nii\.gz"):
        prostate_cases(tmp_path, "HK")
    with pytest.raises(ConfigError, match="'training' is unknown"):
        prostate_cases(tmp_path, "HK", "training")


def test_pictures_are_paired_by_name(tmp_path):
    for folder in ("image", "mask"):
        (tmp_path / "HK" / "test" / folder).mkdir(parents=True)
        (tmp_path / "HK" / "test" / folder / "00_03.png").touch()
    for split in ("test", "all"):
        (case,) = prostate_pictures(tmp_path, "HK", split)
        assert case["volume"] == "test_00_03" and Path(case["label"]).parent.name == "mask"
    (tmp_path / "HK" / "test" / "mask" / "00_03.png").unlink()
    assert "label" not in prostate_pictures(tmp_path, "HK", "test", labeled=False)[0]
    with pytest.raises(ConfigError, match="has no mask"):
        prostate_pictures(tmp_path, "HK", "test")
    with pytest.raises(ConfigError, match="no pictures in"):
        prostate_pictures(tmp_path, "HK", "train")
