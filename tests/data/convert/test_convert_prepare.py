# SPDX-License-Identifier: Apache-2.0
"""Conversion end to end on generated inputs: layout, contents, privacy, resume, damage, check."""

from __future__ import annotations

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
from numerics import assert_within

from fedmonai.data.convert import prepare as module
from fedmonai.data.convert.prepare import prepare_mri
from fedmonai.data.kspace.dataset import KspaceDataset
from fedmonai.data.kspace.list import kspace_volumes
from fedmonai.data.provenance import read_manifest, verify_manifest
from fedmonai.errors import ConfigError


def _files(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


@pytest.fixture
def scans(tmp_path, make_series):
    """Five subjects with one DICOM series each."""
    for k in range(5):
        make_series(tmp_path / "in" / f"Doe_{k}", 3, series=f"1.2.{k}", seed=k, PatientID=f"PATIENT-{k}")
    return tmp_path / "in"


def test_dicom_to_dataset(scans, tmp_path, make_series):
    summary = prepare_mri(str(scans), str(tmp_path / "out"), sequence="T1", split="0.6,0.2,0.2", pad=8)
    assert summary.exit_code == 0 and summary.count("written") == 5
    assert [len(kspace_volumes(tmp_path / "out", split, "T1")) for split in ("train", "val", "test")] == [3, 1, 1]
    assert verify_manifest(tmp_path / "out") == []
    manifest = read_manifest(tmp_path / "out")
    assert manifest["subject_wise"] is True and len(manifest["training"]) == 3
    path = kspace_volumes(tmp_path / "out", "val", "T1")[0]["kspace"]
    with h5py.File(path) as file:
        assert file["kspace"].dtype == np.complex64 and file["kspace"].shape == (3, 8, 8)
        target = file["reconstruction_esc"][()]
        assert file.attrs["max"] == target.max()
        assert_within(np.float32(file.attrs["norm"]), np.linalg.norm(target.astype(np.float64)), sum(target.shape))
        assert file.attrs["acquisition"] == "T1" and file.attrs["patient_id"].startswith("sub-")
        assert file["slice_positions"][()].tolist() == [0, 2, 4]
        # padding 6 x 4 to 8 x 8 puts the first pixel to row 1, column 2, and its place in mm stays
        np.testing.assert_allclose(file.attrs["affine"] @ [0, 1, 2, 1], [10, 20, 0, 1])
        np.testing.assert_allclose(file.attrs["spacing"], [2, 0.5, 0.25])
    item = KspaceDataset(kspace_volumes(tmp_path / "out", "val", "T1"), hybrid_kspace=False)[2]
    image = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(item["kspace"]), norm="ortho"))
    assert_within(image.abs(), item["target"], 2 * (8 + 8))


def test_no_name_and_no_id_in_any_output(scans, tmp_path):
    summary = prepare_mri(str(scans), str(tmp_path / "out"))
    for path in (tmp_path / "out").rglob("*"):
        assert "Doe" not in path.name
        if path.is_file():
            blob = path.read_bytes()
            assert not any(secret in blob for secret in (b"Doe_", b"Jane", b"PATIENT", b"1.2.3")), path
    assert "Doe" in str(summary)  # the report is for the person at the screen


def test_resume_equals_one_run(scans, tmp_path, make_series, monkeypatch):
    whole = prepare_mri(str(scans), str(tmp_path / "whole"))
    count = 0
    write = module.write_volume

    def die_on_third(*args):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return write(*args)

    monkeypatch.setattr(module, "write_volume", die_on_third)
    with pytest.raises(KeyboardInterrupt):
        prepare_mri(str(scans), str(tmp_path / "out"))
    monkeypatch.undo()
    assert len(_files(tmp_path / "out")) == 2 and not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(ConfigError, match=r"2 volumes exist .* --resume keeps them"):
        prepare_mri(str(scans), str(tmp_path / "out"))
    summary = prepare_mri(str(scans), str(tmp_path / "out"), resume=True)
    assert (summary.count("kept"), summary.count("written"), summary.exit_code) == (2, 3, 0)
    assert _files(tmp_path / "out") == _files(tmp_path / "whole") and whole.count("written") == 5
    one, other = read_manifest(tmp_path / "out"), read_manifest(tmp_path / "whole")
    for section in ("training", "validation", "test"):
        assert [e["content"] for e in one[section]] == [e["content"] for e in other[section]]


def test_resume_with_more_input_keeps_splits(scans, tmp_path, make_series):
    prepare_mri(str(scans), str(tmp_path / "out"))
    before = set(_files(tmp_path / "out"))
    for k in range(5, 9):
        make_series(scans / f"Doe_{k}", 3, series=f"1.2.{k}", seed=k, PatientID=f"PATIENT-{k}")
    summary = prepare_mri(str(scans), str(tmp_path / "out"), resume=True)
    assert summary.count("kept") == 5 and summary.count("written") == 4
    assert before < set(_files(tmp_path / "out"))


def test_resume_refuses_other_settings(scans, tmp_path):
    prepare_mri(str(scans), str(tmp_path / "out"), pad=8)
    summary = prepare_mri(str(scans), str(tmp_path / "out"), pad=16, resume=True)
    assert summary.exit_code == 1 and summary.count("failed") == 5
    assert "made from other data or with other settings" in str(summary)


def test_check_writes_nothing(scans, tmp_path, make_series):
    make_series(scans / "gap", 6, skip=(2,), series="1.2.9", PatientID="P9", seed=9)
    before = _files(tmp_path)
    summary = prepare_mri(str(scans), str(tmp_path / "out"), check=True)
    assert _files(tmp_path) == before and not (tmp_path / "out").exists()
    text = str(summary)
    assert summary.exit_code == 0 and summary.count("checked") == 6
    assert "3 slices x 6 rows x 4 columns (image), spacing 2 x 0.5 x 0.25 mm" in text
    assert "zero-padded to 256x256 (--pad 256)" in text and "would be train/" in text
    assert "warning: 1 gaps, about 1 slices missing" in text and "im001.dcm" in text
    assert prepare_mri(str(scans), check=True).exit_code == 0  # no output needed


def test_check_goes_on_when_the_split_is_impossible(tmp_path, make_series):
    make_series(tmp_path / "in", 3)
    summary = prepare_mri(str(tmp_path / "in"), check=True)
    assert "in no split" in str(summary) and "1 subject(s) cannot fill 3 splits" in str(summary)


def test_damaged_and_unknown_inputs_are_named(scans, tmp_path):
    (scans / "Doe_1" / "im001.dcm").write_bytes((scans / "Doe_1" / "im001.dcm").read_bytes()[:-20])
    (scans / "photo.jpg").write_bytes(b"x" * 500)
    np.save(scans / "nan.npy", np.full((3, 4, 4), np.nan))
    np.save(scans / "zero.npy", np.zeros((3, 4, 4)))
    (scans / "readme.txt").write_text("about")
    summary = prepare_mri(str(scans), str(tmp_path / "out"))
    reasons = {outcome.label: outcome.result for outcome in summary.outcomes if outcome.status == "failed"}
    assert summary.exit_code == 1 and len(reasons) == 4 and summary.count("written") == 4
    assert "unknown kind of file" in reasons["photo.jpg"]
    assert "not finite" in reasons["nan.npy"] and "zero everywhere" in reasons["zero.npy"]
    assert "im001.dcm: pixel data cannot be read" in reasons["Doe_1, series ending in 1.2.1 (3 files)"]
    assert "ignored (no images): 1 .txt" in str(summary)
    written = [name for name in _files(tmp_path / "out") if name.endswith(".h5")]
    assert len(written) == 4 == len(_files(tmp_path / "out")) - 1
    assert prepare_mri(str(scans), check=True).count("failed") == 4


def test_a_damaged_block_takes_its_volume_along(tmp_path):
    data = np.random.RandomState(0).rand(9, 4, 4)
    data[8, 0, 0] = np.inf
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", data)
    summary = prepare_mri(str(tmp_path / "in"), str(tmp_path / "out"), split="slices:3,3,3")
    assert summary.exit_code == 1 and "slice 8 holds values" in str(summary)
    assert _files(tmp_path / "out") == []


def test_copies_are_skipped(scans, tmp_path):
    np.save(scans / "a.npy", np.random.RandomState(0).rand(2, 4, 4))
    (scans / "b.npy").write_bytes((scans / "a.npy").read_bytes())
    summary = prepare_mri(str(scans), str(tmp_path / "out"))
    assert summary.exit_code == 0 and "skipped: b.npy -> the same data as a.npy" in str(summary)


def test_blocks_of_one_nifti(tmp_path):
    image = np.random.RandomState(0).rand(6, 5, 10).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.diag([1.0, 2, 3, 1])), tmp_path / "pd.nii.gz")
    prepare_mri(str(tmp_path / "pd.nii.gz"), str(tmp_path / "out"), split="slices:5,2,2", slice_range="1,10", pad=0)
    blocks = {}
    for split in ("train", "val", "test"):
        path = tmp_path / "out" / split / f"pd_{split}.h5"
        with h5py.File(path) as file:
            first, last = file.attrs["slice_block"]
            blocks[split] = list(range(first, last))
            expected = image.transpose(2, 1, 0)[first:last, ::-1]
            assert_within(file["reconstruction_esc"][()], expected, 2 * (5 + 6))
            np.testing.assert_allclose(file.attrs["affine"] @ [0, 4, 0, 1], [0, 0, 3 * first, 1])
    assert blocks == {"train": [1, 2, 3, 4, 5], "val": [6, 7], "test": [8, 9]}
    manifest = read_manifest(tmp_path / "out")
    assert manifest["subject_wise"] is False and manifest["test"][0]["slice_block"] == [8, 10]


def test_folders_that_are_split_already(tmp_path, make_series):
    make_series(tmp_path / "train", 3, series="1.1", PatientID="A", seed=1)
    make_series(tmp_path / "test", 3, series="1.2", PatientID="B", seed=2)
    out = str(tmp_path / "out")
    prepare_mri(str(tmp_path / "train"), out, split="slices:2,1,0")
    assert prepare_mri(str(tmp_path / "test"), out, split="test").exit_code == 0
    manifest = read_manifest(out)
    assert [len(manifest[part]) for part in ("training", "validation", "test")] == [1, 1, 1]
    make_series(tmp_path / "more", 3, series="1.3", PatientID="A", seed=3)
    with pytest.raises(ConfigError, match="overlap: subject sub-"):
        prepare_mri(str(tmp_path / "more"), out, split="test")


def test_undersampled_kspace_gets_a_mask_and_no_target(tmp_path):
    kspace = (np.random.RandomState(0).randn(8, 6, 10) + 1j).astype(np.complex64)
    kspace[:, :, 1::2] = 0
    np.save(tmp_path / "k.npy", kspace)
    options = {"domain": "kspace", "axes": "coil,row,column", "split": "test"}
    text = str(prepare_mri(str(tmp_path / "k.npy"), check=True, **options))
    assert "1 slices x 8 coils" in text and "50.0% of the samples, 5 of 10 columns; no target (inference only)" in text
    prepare_mri(str(tmp_path / "k.npy"), str(tmp_path / "out"), **options)
    with h5py.File(tmp_path / "out" / "test" / "k.h5") as file:
        assert set(file) == {"kspace", "mask"} and file["mask"][()].tolist() == [1, 0] * 5
        np.testing.assert_array_equal(file["kspace"][0], kspace)


def test_fully_sampled_kspace_gets_its_target(tmp_path):
    np.save(tmp_path / "k.npy", np.random.RandomState(0).randn(2, 3, 6, 10) + 1j)
    prepare_mri(
        str(tmp_path / "k.npy"), str(tmp_path / "out"), domain="kspace", axes="slice,coil,row,column", split="train"
    )
    with h5py.File(tmp_path / "out" / "train" / "k.h5") as file:
        coils = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(file["kspace"][1], (1, 2)), norm="ortho"), (1, 2))
        expected = np.sqrt((np.abs(coils) ** 2).sum(0))
        assert_within(file["reconstruction_rss"][1], expected, 2 * (6 + 10) + 3)


def test_fastmri_is_copied_without_its_header(tmp_path, make_volume):
    path = make_volume(tmp_path / "in" / "a.h5", (3, 2, 8, 6), (4, 4), patient_id="Doe", acquisition="AXT1")
    with h5py.File(path, "r+") as file:
        file["ismrmrd_header"] = "<patientName>Doe</patientName>"
    prepare_mri(str(tmp_path / "in"), str(tmp_path / "out"), split="train", slice_range=(1, 3))
    with h5py.File(path) as old, h5py.File(tmp_path / "out" / "train" / "a.h5") as new:
        assert set(new) == {"kspace", "reconstruction_rss"} and new.attrs["acquisition"] == "AXT1"
        np.testing.assert_array_equal(new["kspace"][()], old["kspace"][1:3])
        np.testing.assert_array_equal(new["reconstruction_rss"][()], old["reconstruction_rss"][1:3])
    assert b"Doe" not in (tmp_path / "out" / "train" / "a.h5").read_bytes()


def test_same_data_under_two_subjects_stops_the_manifest(tmp_path, make_volume):
    for k, name in enumerate("abc"):
        make_volume(tmp_path / "in" / f"{name}.h5", seed=k // 2, patient_id=name)  # a and b hold the same k-space
    with pytest.raises(ConfigError, match="hold the same image data"):
        prepare_mri(str(tmp_path / "in"), str(tmp_path / "out"), split="0.4,0.3,0.3", seed=1)


def test_full_disk_is_one_clear_error(scans, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h5py.File, "create_dataset", full)
    with pytest.raises(ConfigError, match=r"cannot be written .*No space left"):
        prepare_mri(str(scans), str(tmp_path / "out"))
    assert _files(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"output": None}, "output: give the dataset folder"),
        ({"axis": 3}, "axis: 3"),
        ({"pad": -1}, "pad: -1"),
        ({"pad": 1.5}, "pad: 1.5"),
        ({"domain": "fourier"}, "domain: 'fourier'"),
        ({"axes": "row,slice"}, "must name row and column"),
        ({"slice_range": "5,2"}, "slice_range: 5,2"),
        ({"sequence": "../T1"}, "cannot be a folder name"),
        ({"sequence": ".."}, "cannot be a folder name"),
        ({"split": "half"}, "split: 'half' is not understood"),
    ],
)
def test_wrong_options(tmp_path, options, reason):
    with pytest.raises(ConfigError, match=reason):
        prepare_mri(**{"input": str(tmp_path), "output": str(tmp_path / "out"), **options})


def test_slice_range_beyond_the_volume(scans, tmp_path):
    summary = prepare_mri(str(scans), str(tmp_path / "out"), slice_range=(5, 9))
    assert summary.count("failed") == 5 and "leaves none of 3 slices" in str(summary)
