# SPDX-License-Identifier: Apache-2.0
"""What a site runs before it joins."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from fedmonai.bundle.site_check import Finding, check_site, format_findings
from fedmonai.commands.bundle import check
from fedmonai.data.provenance import write_manifest

FL_MR = Path(__file__).parents[2] / "bundles" / "fl_mr"
Look = Callable[..., Any]
SPLITS = [f"{what} {split}" for split in ("train", "val", "test") for what in ("split", "files")]
PARTS = ["configuration", *SPLITS, "splits", "one batch"]


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    yield
    logging.disable(logging.NOTSET)  # the command line silences the log for its process


@pytest.fixture
def findings_of(tiny: dict[str, Any]) -> Callable[..., dict[str, Finding]]:
    """The findings for a site folder by name: findings_of(root, name="A", <ids>)."""

    def look(root: Path, name: str = "A", **ids: Any) -> dict[str, Finding]:
        sites = {"sites": {"A": {"dataset_dir": str(root)}}}
        found = check_site(FL_MR, name, output_dir=str(root.parent / "out"), **{**tiny, **sites, **ids})
        return {f.what: f for f in found}

    return look


@pytest.fixture
def bad_text(findings_of: Callable[..., dict[str, Finding]]) -> Callable[..., str]:
    """What the only finding that is not good says: bad_text(root, what, <ids>)."""

    def look(root: Path, what: str, **ids: Any) -> str:
        found = findings_of(root, **ids)
        assert [name for name, f in found.items() if not f.good] == [what], format_findings("A", list(found.values()))
        return found[what].found

    return look


def test_good_site(make_site: Look, findings_of: Look) -> None:
    root = make_site()
    before = sorted(root.rglob("*"))
    found = findings_of(root)
    assert list(found) == PARTS
    assert all(f.good for f in found.values())
    assert "1 volumes, 4 samples, shapes [(1, 32, 32)], input range -" in found["split test"].found
    assert found["one batch"].found.startswith("(4, 1, 32, 32) -> (4, 1, 32, 32), loss ")
    assert sorted(root.rglob("*")) == before


def test_unknown_site_names_the_known_ones(make_site: Look, findings_of: Look) -> None:
    found = findings_of(make_site(), name="Z")
    assert [f.good for f in found.values()] == [False]
    assert found["configuration"].found == "'Z' is no site of this federation; its sites are A."


def test_misspelt_ids_of_federation_and_site(make_site: Look, bad_text: Look) -> None:
    root = make_site()
    assert "did you mean 'num_rounds'" in bad_text(root, "configuration", num_rouns=3)
    assert "did you mean 'epochs'" in bad_text(root, "configuration", **{"local::epohcs": 3})


def test_missing_config_file(make_site: Look, bad_text: Look) -> None:
    text = bad_text(make_site(), "configuration", config_file=["configs/federated.yaml", "configs/mine.yaml"])
    assert text.startswith("config file 'configs/mine.yaml' is not in the bundle folder")


def test_missing_folder_says_what_is_expected(make_site: Look, bad_text: Look) -> None:
    text = bad_text(make_site() / "nowhere", "configuration")
    assert "site 'A': dataset_dir:" in text
    assert "<train|val|test>/*.h5" in text


def test_empty_test_split_leaves_the_other_findings(make_site: Look, bad_text: Look) -> None:
    root = make_site()
    (root / "test" / "A_test.h5").unlink()
    assert "split 'test' is empty" in bad_text(root, "split test")


def test_damaged_file_is_named(make_site: Look, bad_text: Look) -> None:
    root = make_site()
    path = root / "test" / "A_test.h5"
    path.write_bytes(path.read_bytes()[:2000])
    assert "A_test.h5" in bad_text(root, "split test")


def test_values_that_are_no_numbers(make_site: Look, bad_text: Look, volume_file: Look) -> None:
    root = make_site()
    volume_file(root / "val" / "A_val.h5", bad=np.nan)
    text = bad_text(root, "configuration")  # slices are read when the dataset is built: cache is memory
    assert "A_val.h5: 'kspace' holds NaN or infinite values in slice" in text


def test_volume_in_two_splits(make_site: Look, bad_text: Look) -> None:
    root = make_site()
    shutil.copy(root / "train" / "A_train.h5", root / "test" / "A_train.h5")
    assert bad_text(root, "splits").startswith("overlap: 'A_train' in train and 'A_train' in test have")


def test_same_data_under_another_name_is_exit_code_1(
    make_site: Look, bad_text: Look, tiny: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    root = make_site()
    shutil.copy(root / "train" / "A_train.h5", root / "test" / "other.h5")
    text = bad_text(root, "splits")
    assert "'A_train' in train and 'other' in test hold the same image data" in text
    given = {"sites": {"A": {"dataset_dir": str(root)}}, "output_dir": str(root.parent / "out"), **tiny}
    assert check("A", str(FL_MR), **given) == 1 and "FAIL  splits" in capsys.readouterr().out


def name_subjects(root: Path, **attributes: Any) -> None:
    for split, subject in (("train", "s1"), ("val", "s2"), ("test", "s1")):
        with h5py.File(root / split / f"A_{split}.h5", "r+") as stream:
            stream.attrs["patient_id"] = subject
            stream.attrs.update(attributes)


def test_subject_in_two_splits(make_site: Look, bad_text: Look) -> None:
    root = make_site()
    name_subjects(root)
    assert "'A_train' in train and 'A_test' in test are of one subject (s1)" in bad_text(root, "splits")


def test_blocks_of_slices_of_one_subject_are_no_overlap(make_site: Look, findings_of: Look) -> None:
    root = make_site()
    name_subjects(root, slice_block=[0, 4])
    found = findings_of(root)["splits"]
    assert found.good and str(found) == "WARN"
    assert found.found.startswith("blocks of slices of one subject in two splits: s1 in train and test;")
    assert "s2" not in found.found


@pytest.mark.parametrize(
    ("subjects", "text"),
    [
        (("s1", "s2", "s3"), "no image data in two splits; no subject in two splits (3 of 3 volumes name theirs)"),
        (("s1", "s2", ""), "no image data in two splits; no subject in two splits (2 of 3 volumes name theirs)"),
        (("", "", ""), "no image data in two splits; no volume names its subject"),
    ],
)
def test_of_subjects_only_what_is_known_is_said(
    make_site: Look, findings_of: Look, subjects: tuple[str, ...], text: str
) -> None:
    root = make_site()
    for split, subject in zip(("train", "val", "test"), subjects, strict=True):
        with h5py.File(root / split / f"A_{split}.h5", "r+") as stream:
            stream.attrs["patient_id"] = subject
    found = findings_of(root)["splits"]
    assert (found.found, str(found)) == (text, "ok  ")


def test_pooled_folders_number_their_subjects_by_themselves(make_site: Look, findings_of: Look, tmp_path: Path) -> None:
    roots = [make_site("A"), make_site("other")]
    for root, split in zip(roots, ("train", "test"), strict=True):
        with h5py.File(root / split / f"{root.name}_{split}.h5", "r+") as stream:
            stream.attrs["patient_id"] = "1"
    found = findings_of(tmp_path, sites={"A": {"dataset_dir": [str(root) for root in roots]}})["splits"]
    assert found.good and "(2 of 6 volumes" in found.found


def test_files_that_differ_from_the_manifest_are_named(make_site: Look, bad_text: Look, findings_of: Look) -> None:
    root = make_site()
    splits = {split: [{"kspace": f"{split}/A_{split}.h5", "subject": split}] for split in ("train", "val", "test")}
    write_manifest(root, splits)
    found = findings_of(root)["manifest"]
    assert (found.good, found.found) == (True, f"3 files as in {root / 'manifest.json'}")
    with h5py.File(root / "val" / "A_val.h5", "r+") as stream:
        stream["kspace"][0, 0, 0] = 0.5
    assert bad_text(root, "manifest") == "val/A_val.h5 has changed since the manifest was written."
    write_manifest(root, splits)
    (root / "test" / "A_test.h5").rename(root / "test" / "renamed.h5")
    assert "'test/A_test.h5' is not a file" in bad_text(root, "manifest")


def test_data_of_another_kind_are_named(make_site: Look, bad_text: Look) -> None:
    root = make_site()
    with h5py.File(root / "train" / "A_train.h5", "w") as stream:
        stream["image"], stream["label"] = np.zeros((32, 32)), np.zeros((32, 32), np.uint8)
    text = bad_text(root, "configuration")
    assert "A_train.h5: no dataset 'kspace' (found: image, label)" in text


def test_validation_on_the_training_files_by_choice_is_a_warning(findings_of: Look, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for kind, values in (
            ("image", np.random.RandomState(len(split)).randint(0, 255, (32, 32))),
            ("mask", np.eye(32)),
        ):
            path = tmp_path / "slices" / "HK" / split / kind / "00.png"
            path.parent.mkdir(parents=True)
            Image.fromarray((values * (255 if kind == "mask" else 1)).astype(np.uint8)).save(path)
    sites = {"HK": {"overlay": "configs/data/prostate_pictures.yaml", "dataset_dir": str(tmp_path / "slices")}}
    found = check_site(FL_MR.parent / "iop_fl", "HK", output_dir=str(tmp_path / "out"), sites=sites, device="cpu")
    assert all(f.good for f in found), format_findings("HK", found)
    (splits,) = [f for f in found if f.what == "splits"]
    assert splits.warning and splits.found.startswith("the validation split is the training split, file by file")
    shutil.copy(tmp_path / "slices/HK/train/image/00.png", tmp_path / "slices/HK/test/image/00.png")
    found = check_site(FL_MR.parent / "iop_fl", "HK", output_dir=str(tmp_path / "out"), sites=sites, device="cpu")
    assert [f.what for f in found if not f.good] == ["splits"]


def test_contact_sheet_is_the_only_file_that_is_written(make_site: Look, findings_of: Look, tmp_path: Path) -> None:
    root = make_site()
    before = sorted(root.rglob("*"))
    found = findings_of(root, sheet=tmp_path / "sheet.png")
    assert found["contact sheet"].good and sorted(root.rglob("*")) == before
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * 160 * 4, 3 * (160 + 14))  # four slices of the volume in each split


def test_all_sites_and_the_table_over_them(
    make_site: Look, capsys: pytest.CaptureFixture, tiny: dict[str, Any]
) -> None:
    roots = {name: make_site(name) for name in "AB"}
    with h5py.File(roots["B"] / "train" / "B_train.h5", "r+") as stream:
        stream.attrs["acquisition"], stream.attrs["spacing"] = "T2", [3.0, 2.0, 2.0]
    with h5py.File(roots["A"] / "train" / "A_train.h5", "r+") as stream:
        stream.attrs["acquisition"], stream.attrs["spacing"] = "T1", [3.0, 1.0, 1.0]
    sites = {name: {"dataset_dir": str(root)} for name, root in roots.items()}
    code = check(bundle=str(FL_MR), sites=sites, output_dir=str(roots["A"].parent / "out"), **tiny)
    lines = capsys.readouterr().out.splitlines()
    assert code == 0 and {"site 'A' can take part", "site 'B' can take part"} <= set(lines)
    assert "differs: contrast: A T1, B T2" in lines and "differs: spacing: A 1 x 1 x 3, B 2 x 2 x 3 mm" in lines
    assert [line.split()[1:3] for line in lines[-9:-2]][1:] == [[s, p] for s in "AB" for p in ("train", "val", "test")]


def test_table_gives_one_verdict() -> None:
    good, bad = Finding("split train", "4 samples"), Finding("one batch", "loss nan", good=False)
    lines = format_findings("A", [good, bad]).splitlines()
    assert lines == ["ok    split train  4 samples", "FAIL  one batch    loss nan", "site 'A' cannot take part"]
    assert format_findings("A", [good]).endswith("site 'A' can take part")


@pytest.mark.parametrize(("lr", "code"), [(0.001, 0), (-1, 1)])
def test_command_line_exit_code(
    make_site: Look, capsys: pytest.CaptureFixture, lr: float, code: int, tiny: dict[str, Any]
) -> None:
    root = make_site()
    given = {"sites": {"A": {"dataset_dir": str(root)}}, "output_dir": str(root.parent / "out"), **tiny}
    assert check("A", str(FL_MR), **{**given, "local::lr": lr}) == code
    assert capsys.readouterr().out.strip().endswith("can take part" if code == 0 else "cannot take part")
