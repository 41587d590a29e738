# SPDX-License-Identifier: Apache-2.0
"""Inputs that cannot be used among others that can: each is named in one line, and the others are converted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pydicom
import pytest
import scipy.io
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from fedmonai.data.convert.dicom import read_series
from fedmonai.data.convert.prepare import prepare_mri
from fedmonai.data.convert.readers import read_array, read_fastmri
from fedmonai.data.damage import InputError
from fedmonai.matlab import mat_arrays


def overwrite(path: Path, mark: bytes, new: bytes) -> None:
    blob = path.read_bytes()
    assert mark in blob
    path.write_bytes(blob.replace(mark, new))


def spoil_heap(path: Path) -> None:
    """The texts of attributes lie in a heap of their own: the header of the file and its k-space stay whole."""
    overwrite(path, b"GCOL", b"XXXX")


def spoil_node(path: Path) -> None:
    overwrite(path, b"SNOD", b"XXXX")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def vanish(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize("spoil", [spoil_heap, spoil_node, cut, vanish])
@pytest.mark.parametrize("check", [True, False])
def test_damaged_file_does_not_end_a_conversion(
    spoil: Callable[[Path], None], check: bool, tmp_path: Path, make_volume: Callable[..., Path]
) -> None:
    for name in "abc":
        make_volume(tmp_path / "in" / f"{name}.h5", seed=ord(name), acquisition="AXT1")
    spoil(tmp_path / "in" / "b.h5")
    summary = prepare_mri(str(tmp_path / "in"), str(tmp_path / "out"), split="train", check=check)
    good = "checked" if check else "written"
    assert {outcome.label: outcome.status for outcome in summary.outcomes} == {
        "a.h5": good,
        "b.h5": "failed",
        "c.h5": good,
    }
    assert summary.exit_code == 1
    (line,) = [line for line in str(summary).splitlines() if "b.h5" in line]
    assert line.startswith("failed: b.h5 -> ") and str(tmp_path) not in line
    if not check:
        assert sorted(path.name for path in (tmp_path / "out" / "train").iterdir()) == ["a.h5", "c.h5"]


def test_damaged_link_table_of_a_mat_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        file["im"] = np.ones((4, 5))
    spoil_node(tmp_path / "a.mat")
    with pytest.raises(InputError, match=r"damaged \.mat file"), read_array(tmp_path / "a.mat", "image", None, None):
        pass


def test_mask_that_is_not_finite(tmp_path: Path, make_volume: Callable[..., Path]) -> None:
    path = make_volume(tmp_path / "a.h5", mask=np.array([1, 1, np.nan, 1, 1, 1]))
    with pytest.raises(InputError, match="'mask' holds NaN"), read_fastmri(path):
        pass


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_dicom_is_named_and_not_decoded(
    syntax: str, tmp_path: Path, make_slice: Callable[..., Path]
) -> None:
    path = make_slice(tmp_path / "a.dcm", np.arange(24).reshape(6, 4))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([bytes(64)])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path)
    with pytest.raises(InputError, match=r"^compressed DICOM \((RLE|JPEG 2000).*\); decompress it first"):
        read_series([path])


def test_deflated_dicom_is_refused_before_it_is_inflated(tmp_path: Path, make_slice: Callable[..., Path]) -> None:
    path = make_slice(tmp_path / "a.dcm", np.zeros((6, 4)))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    path.write_bytes(path.read_bytes()[:-40])  # what is inflated would be damaged
    with pytest.raises(InputError, match=r"^compressed DICOM"):
        read_series([path])


def test_series_over_time_is_named(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((4, 4, 3, 7), np.float32), np.eye(4)), tmp_path / "a.nii")
    summary = prepare_mri(str(tmp_path), check=True)
    assert "NIfTI of 7 volumes (over time, or echoes); choose one with --frame 0 to 6" in str(summary)


@pytest.mark.parametrize("kind", ["virtual", "external", "link"])
def test_mat_file_with_data_elsewhere_is_named_and_nothing_else_is_opened(kind: str, tmp_path: Path) -> None:
    path, other = tmp_path / "a.mat", tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["im"] = np.ones((4, 5))
    with h5py.File(path, "w", userblock_size=512) as file:
        if kind == "virtual":
            layout = h5py.VirtualLayout((4, 5), "f8")
            layout[:] = h5py.VirtualSource(str(other), "im", (4, 5))
            file.create_virtual_dataset("im", layout)
        elif kind == "external":
            file.create_dataset("im", (4, 5), "f8", external=[(str(other), 0, 160)])
        else:
            file["im"] = h5py.ExternalLink(str(other), "im")
    expected = {"link": "'im' is a link"}.get(kind, f"'im' is an? {kind} dataset")
    with pytest.raises(InputError, match=expected), read_array(path, "image", None, None):
        pass


@pytest.mark.parametrize("compressed", [True, False])
def test_mat_arrays_are_those_that_scipy_writes(compressed: bool, tmp_path: Path) -> None:
    rng, kinds = np.random.RandomState(0), ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "c8", "c16"]
    arrays = {f"of_{kind}": (rng.rand(5, 30, 2) * (100 + 7j if kind[0] == "c" else 100)).astype(kind) for kind in kinds}
    scipy.io.savemat(
        tmp_path / "a.mat", {**arrays, "text": "x", "cell": np.array([1, "a"], object)}, do_compression=compressed
    )
    found = {array.name: array for array in mat_arrays(tmp_path / "a.mat")}
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        values = found[name].read()
        assert values.dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(values, array)
