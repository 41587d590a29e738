# SPDX-License-Identifier: Apache-2.0
"""Folders as they come: label maps beside images, contrasts and visits of one subject, names that leave it open."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fedmonai.data.convert.file_names import contrast_of, is_label_name, shared_beginnings, subject_part
from fedmonai.data.convert.prepare import prepare_mri
from fedmonai.data.convert.scan import Naming, find_sources
from fedmonai.data.kspace.folder import ReconstructionFolder
from fedmonai.data.provenance import read_manifest
from fedmonai.errors import ConfigError


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)


def _image(seed: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 900, (8, 6, 3)).astype(np.int16)


def _labels() -> np.ndarray:
    return np.random.RandomState(0).choice([0, 1, 2, 4], (8, 6, 3)).astype(np.uint8)


@pytest.fixture
def brats(tmp_path: Path) -> Path:
    for k, subject in enumerate(f"BraTS19_CBICA_{name}_1" for name in ("AAB", "AAG", "BHQ", "TCB")):
        for j, contrast in enumerate(("t1", "t1ce", "t2", "flair")):
            _save(tmp_path / "raw" / f"{subject}_{contrast}.nii.gz", _image(10 * k + j))
        _save(tmp_path / "raw" / f"{subject}_seg.nii.gz", _labels())
    return tmp_path / "raw"


def _layout(root: Path) -> dict[str, list[tuple[str, str]]]:
    """Subject to the (sequence, split) of its volumes."""
    found: dict[str, list[tuple[str, str]]] = {}
    for split, section in {"train": "training", "val": "validation", "test": "test"}.items():
        for entry in read_manifest(root)[section]:
            found.setdefault(entry["subject"], []).append((entry.get("sequence"), split))
    return found


def test_one_contrast_of_a_mixed_folder(brats: Path, tmp_path: Path) -> None:
    summary = prepare_mri(str(brats), str(tmp_path / "out"), sequence="T1", pad=0)
    results = {outcome.label: outcome.result for outcome in summary.outcomes if outcome.status == "skipped"}
    assert (summary.exit_code, summary.count("written"), len(results)) == (0, 4, 16)
    assert results["BraTS19_CBICA_AAB_1_t2.nii.gz"] == "its name or header says T2, not T1"
    assert results["BraTS19_CBICA_AAB_1_t1ce.nii.gz"] == "its name or header says T1ce, not T1"
    assert results["BraTS19_CBICA_AAB_1_seg.nii.gz"] == "a label map by its name and its values 0, 1, 2, 4"
    assert "subjects: 4 in 4 volumes" in str(summary)
    assert "by file name without its contrast: 4 in 4 volumes, such as 'BraTS19_CBICA_AAB_1'" in str(summary)
    assert sorted(len(places) for places in _layout(tmp_path / "out").values()) == [1, 1, 1, 1]
    assert all(path.stem.endswith("_t1") for path in (tmp_path / "out").rglob("*.h5"))


def test_all_contrasts_of_a_subject_are_in_one_split(brats: Path, tmp_path: Path) -> None:
    summary = prepare_mri(str(brats), str(tmp_path / "out"), sequence="auto", pad=0)
    assert (summary.exit_code, summary.count("written")) == (0, 16)
    layout = _layout(tmp_path / "out")
    assert [sorted(sequence for sequence, _ in places) for places in layout.values()] == [
        ["FLAIR", "T1", "T1ce", "T2"]
    ] * 4
    assert all(len({split for _, split in places}) == 1 for places in layout.values())
    for path in (tmp_path / "out").rglob("*.h5"):
        assert contrast_of(path.stem) == path.parent.parent.name
    again = prepare_mri(str(brats), str(tmp_path / "out"), sequence="auto", pad=0, resume=True)
    assert (again.exit_code, again.count("kept")) == (0, 16)
    with pytest.raises(ConfigError, match="output: 16 volumes exist"):
        prepare_mri(str(brats), str(tmp_path / "out"), sequence="auto", pad=0)


def test_mixed_contrasts_are_said(brats: Path) -> None:
    text = str(prepare_mri(str(brats), check=True, pad=0))
    assert "several contrasts in one folder (4 FLAIR, 4 T1, 4 T1ce, 4 T2)" in text
    assert "subjects: 4 in 16 volumes" in text


def test_include_and_exclude(brats: Path) -> None:
    summary = prepare_mri(str(brats), check=True, include="*_t1.nii.gz,*_t2.nii.gz", exclude="*_AAB_*", pad=0)
    assert (summary.count("checked"), summary.left_out, summary.exit_code) == (6, 14, 0)
    assert "left out by --include and --exclude: 14 files" in str(summary)
    with pytest.raises(ConfigError, match=r"exclude: no file in .* is called '\*_T1w\*'"):
        prepare_mri(str(brats), check=True, exclude="*_T1w*")


def test_label_map_under_any_name_is_refused_with_a_remedy_that_helps(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        _save(tmp_path / f"{name}.nii.gz", _image(ord(name)))
        _save(tmp_path / f"{name}_Tumour.nii.gz", _labels())
    summary = prepare_mri(str(tmp_path), check=True, split="test", pad=0)
    (reason,) = {outcome.result for outcome in summary.outcomes if outcome.status == "failed"}
    assert summary.exit_code == 1 and "the whole values 0, 1, 2, 4: a label map" in reason
    pattern = re.search("--exclude '(.*)'", reason)
    assert pattern is not None
    assert prepare_mri(str(tmp_path), check=True, split="test", pad=0, exclude=pattern.group(1)).exit_code == 0


def test_an_image_that_is_called_a_label_map_is_not_dropped_in_silence(tmp_path: Path) -> None:
    _save(tmp_path / "x_mask.nii.gz", _image(0))
    summary = prepare_mri(str(tmp_path), check=True, split="test", pad=0)
    assert summary.exit_code == 1 and "holds gray levels of an image" in str(summary)


def test_label_maps_are_not_reconstructed(brats: Path) -> None:
    names = [source.name for source in ReconstructionFolder(brats).data]
    assert len(names) == 16 and not any(name.endswith("seg") for name in names)
    (brats / "BraTS19_CBICA_AAB_1_seg.nii.gz").rename(brats / "AAA_first.nii.gz")
    dataset = ReconstructionFolder(brats)
    with pytest.raises(ConfigError, match="few whole values, which is a label map"):
        _ = dataset[0]


@pytest.mark.parametrize(
    ("names", "count", "rule"),
    [
        (["p1/t1.nii", "p1/t2.nii", "p2/t1.nii"], 2, "folder, since the file name is a contrast alone"),
        (["sub-01/anat/sub-01_T1w.nii", "sub-01/anat/sub-01_T2w.nii"], 1, "BIDS entity sub-"),
        (["IXI012-Guys-0828-T1.nii", "IXI012-Guys-0828-PD.nii"], 1, "file name without its contrast"),
        (["scan_a.nii", "scan_b.nii"], 2, "file name"),
    ],
)
def test_rules(tmp_path: Path, names: list[str], count: int, rule: str) -> None:
    for name in names:
        _save(tmp_path / name, _image(0))
    sources = find_sources(tmp_path, Naming()).sources
    assert len({source.subject for source in sources}) == count and {source.rule for source in sources} == {rule}


@pytest.mark.parametrize(
    ("names", "remedy", "subjects"),
    [
        (["patient001_frame01", "patient001_frame12", "patient002_frame01", "patient002_frame09"], "one", 2),
        (["BraTS-GLI-00000-000-t1n", "BraTS-GLI-00000-001-t1n", "BraTS-GLI-00002-000-t1n"], "one", 2),
        (["p1/visit1/t1", "p1/visit2/t1", "p2/visit1/t1", "p3/visit1/t1"], "one", 3),
        (["siteA1_003", "siteA1_004", "siteB2_001"], "own", 3),
    ],
)
def test_unclear_names_are_asked_about(tmp_path: Path, names: list[str], remedy: str, subjects: int) -> None:
    for k, name in enumerate(names):
        _save(tmp_path / "in" / f"{name}.nii", _image(k))
    options = {"split": "0.5,0.5,0"}
    summary = prepare_mri(str(tmp_path / "in"), check=True, **options)
    assert summary.exit_code == 1
    with pytest.raises(ConfigError, match="begin alike") as caught:
        prepare_mri(str(tmp_path / "in"), str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()
    one, own = re.search(r"--subject '(.*)' if names .* --subject (\w+) if each", str(caught.value)).groups()
    answered = prepare_mri(str(tmp_path / "in"), check=True, subject=one if remedy == "one" else own, **options)
    assert answered.exit_code == 0 and f"subjects: {subjects} in {len(names)} volumes" in str(answered)


@pytest.mark.parametrize(
    "names", [["scan_01", "scan_02", "scan_03"], ["BraTS19_CBICA_AAB_1", "BraTS19_TCIA10_311_1"], ["s0", "s1"], []]
)
def test_clear_names_are_not(names: list[str]) -> None:
    assert shared_beginnings(names) == {}


@pytest.mark.parametrize(
    ("path", "contrast"),
    [
        ("sub-01/anat/sub-01_space-T1w_FLAIR", "FLAIR"),
        ("x_T2_FLAIR", "FLAIR"),
        ("t1_vibe_post_km", "T1ce"),
        ("t1_gre_fsp_3d_sag", "T1"),
        ("AXT1POST", "T1ce"),
        ("file_brain_AXT2_200", "T2"),
        ("PD/sub-01_T1w", "T1"),
        ("PD/p01", "PD"),
        ("brain", None),
        ("", None),
    ],
)
def test_contrasts(path: str, contrast: str | None) -> None:
    assert contrast_of(path) == contrast


def test_words_of_names() -> None:
    assert is_label_name("subject26_DE_scribble.nii.gz") and not is_label_name("segovia_t1.nii")
    assert subject_part("file_brain_AXT2_200") == "file_brain_200" and subject_part("a__b_seg") == "a__b"


def test_contrast_of_a_series_comes_from_its_header(tmp_path: Path, make_series) -> None:
    for k, description in enumerate(("t1_gre", "t2_tse", "")):
        make_series(tmp_path / f"s{k}", 2, series=f"1.2.{k}", seed=k, SeriesDescription=description)
    summary = prepare_mri(str(tmp_path), check=True, sequence="T1", split="test")
    assert (summary.count("checked"), summary.count("skipped")) == (2, 1)
    assert prepare_mri(str(tmp_path), check=True, sequence="auto", split="test").count("failed") == 1
