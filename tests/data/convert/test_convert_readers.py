# SPDX-License-Identifier: Apache-2.0
"""NIfTI, NumPy, MATLAB and fastMRI inputs of the converter."""

from __future__ import annotations

import h5py
import nibabel as nib
import numpy as np
import pytest
import scipy.io

from fedmonai.data.convert.readers import raw_facts, read_array, read_fastmri, read_nifti
from fedmonai.data.convert.volume import check_size
from fedmonai.data.damage import InputError

VOXELS = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(np.float32)


def _nifti(path, data=VOXELS, affine=None):
    nib.save(nib.Nifti1Image(data, np.diag([1.0, 2, 3, 1]) if affine is None else affine), path)
    return path


def test_nifti_slices_rows_columns(tmp_path):
    """RAS+ voxels (i, j, k): slice k, column i, row j from anterior (the last j) on."""
    volume = read_nifti(_nifti(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(volume.data, VOXELS.transpose(2, 1, 0)[:, ::-1])
    for i, j, k in [(0, 0, 0), (1, 2, 3), (1, 0, 2)]:
        assert volume.data[k, 2 - j, i] == VOXELS[i, j, k]
        np.testing.assert_allclose(volume.affine @ [k, 2 - j, i, 1], [i, 2 * j, 3 * k, 1])
    assert volume.spacing == pytest.approx((3, 2, 1))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_nifti_axis_and_geometry(tmp_path, axis):
    affine = np.array([[0, -1.5, 0, 9], [0, 0, 2.0, 8], [-2.5, 0, 0, 7], [0, 0, 0, 1]])
    volume = read_nifti(_nifti(tmp_path / "a.nii", affine=affine), axis)
    assert volume.data.shape[0] == VOXELS.shape[axis]
    for index in np.ndindex(*volume.data.shape):  # every voxel keeps its place in mm
        place = volume.affine @ [*index, 1]
        voxel = np.round(np.linalg.inv(affine) @ place).astype(int)[:3]
        assert volume.data[index] == VOXELS[tuple(voxel)]
    assert nib.aff2axcodes(volume.affine)[1] in ("P", "I", "L")


def test_nifti_scaling_complex_and_singleton_time(tmp_path):
    image = nib.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2, 1), np.eye(4))
    image.header.set_slope_inter(0.5, 3)
    nib.save(image, tmp_path / "a.nii")
    assert read_nifti(tmp_path / "a.nii").data.shape == (2, 2, 2)
    assert read_nifti(_nifti(tmp_path / "b.nii", (VOXELS + 1j).astype(np.complex64))).data.dtype == np.complex64


def test_nifti_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="5 volumes"):
        read_nifti(_nifti(tmp_path / "t.nii", np.zeros((2, 2, 2, 5), np.float32)))
    path = _nifti(tmp_path / "a.nii")
    blob = bytearray(path.read_bytes())
    for name, damage in {"short": blob[:360], "text": b"hello", "empty": b""}.items():
        (tmp_path / f"{name}.nii").write_bytes(damage)
        with pytest.raises(InputError, match="damaged NIfTI"):
            read_nifti(tmp_path / f"{name}.nii")
    blob[42:48] = np.array([32000, 32000, 32000], "<i2").tobytes()
    (tmp_path / "huge.nii").write_bytes(blob)
    with pytest.raises(InputError, match="at most"):
        read_nifti(tmp_path / "huge.nii")
    zipped = _nifti(tmp_path / "z.nii.gz", np.random.RandomState(0).rand(9, 9, 9)).read_bytes()
    (tmp_path / "z.nii.gz").write_bytes(zipped[: len(zipped) // 2])
    with pytest.raises(InputError, match="damaged NIfTI"):
        read_nifti(tmp_path / "z.nii.gz")


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((4, 5), None, (1, 4, 5)),
        ((3, 4, 5), None, (3, 4, 5)),
        ((3, 2, 4, 5), None, (3, 2, 4, 5)),
        ((2, 4, 5), ("coil", "row", "column"), (1, 2, 4, 5)),
        ((4, 5, 3), ("row", "column", "slice"), (3, 4, 5)),
        ((5, 4), ("column", "row"), (1, 4, 5)),
    ],
)
def test_npy(tmp_path, shape, axes, expected):
    np.save(tmp_path / "a.npy", np.random.RandomState(0).rand(*shape))
    with read_array(tmp_path / "a.npy", "image", axes, None) as volume:
        assert volume.data.shape == expected and bool(volume.warnings) == (axes is None)


def test_npy_that_cannot_be_used(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    np.save(tmp_path / "text.npy", np.array([["a", "b"]]))
    np.save(tmp_path / "deep.npy", np.zeros((1, 1, 1, 2, 2)))
    np.save(tmp_path / "huge.npy", np.zeros((2, 4, 5)))
    blob = (tmp_path / "huge.npy").read_bytes().replace(b"(2, 4, 5), }      ", b"(9999, 9999, 999)}")
    assert b"9999, 9999" in blob
    (tmp_path / "huge.npy").write_bytes(blob)
    (tmp_path / "junk.npy").write_bytes(b"junk")
    reasons = {"objects": "Python objects", "text": "expected numbers", "deep": "2 to 4 dimensions"}
    for name, reason in {**reasons, "huge": "damaged", "junk": "damaged"}.items():
        with pytest.raises(InputError, match=reason), read_array(tmp_path / f"{name}.npy", "image", None, None):
            pass


def test_mat_5_and_73(tmp_path):
    image = (np.random.RandomState(0).rand(4, 5, 3) + 1j).astype(np.complex64)
    scipy.io.savemat(tmp_path / "old.mat", {"im": image, "te": 3.0, "name": "x"})
    with h5py.File(tmp_path / "new.mat", "w", userblock_size=512) as file:
        record = np.zeros(image.T.shape, np.dtype([("real", "f4"), ("imag", "f4")]))
        record["real"], record["imag"] = image.T.real, image.T.imag
        file["im"] = record
    for name in ("old", "new"):
        with read_array(tmp_path / f"{name}.mat", "image", None, None) as volume:
            np.testing.assert_allclose(volume.data, image.transpose(2, 0, 1))


def test_mat_that_cannot_be_used(tmp_path):
    scipy.io.savemat(tmp_path / "two.mat", {"a": VOXELS, "b": VOXELS})
    scipy.io.savemat(tmp_path / "none.mat", {"a": 3.0})
    (tmp_path / "junk.mat").write_bytes(b"x" * 300)
    reasons = {"two": r"2 arrays in the file \(a, b\); choose one with --key", "none": "0 arrays", "junk": "damaged"}
    for name, reason in reasons.items():
        with pytest.raises(InputError, match=reason), read_array(tmp_path / f"{name}.mat", "image", None, None):
            pass
    with (
        pytest.raises(InputError, match="no numeric variable 'c'"),
        read_array(tmp_path / "two.mat", "image", None, "c"),
    ):
        pass
    with h5py.File(tmp_path / "huge.mat", "w", userblock_size=512) as file:
        file.create_dataset("a", (10**5, 10**5, 10**5), "f8", chunks=(1, 64, 64))
    with (
        pytest.raises(InputError, match="declares 8,000,000,000,000,000 bytes but stores 0"),
        read_array(tmp_path / "huge.mat", "image", None, None),
    ):
        pass
    with read_array(tmp_path / "two.mat", "image", None, "b") as volume:
        assert volume.data.shape == (4, 2, 3)


def test_axes_must_fit(tmp_path):
    np.save(tmp_path / "a.npy", VOXELS)
    with (
        pytest.raises(InputError, match="--axes names 2 axes"),
        read_array(tmp_path / "a.npy", "image", ("row", "column"), None),
    ):
        pass


def test_fastmri(tmp_path, make_volume):
    path = make_volume(tmp_path / "a.h5", (3, 2, 8, 6), (4, 4), patient_id="P1", acquisition="AXT1")
    with h5py.File(path, "r+") as file:
        file["ismrmrd_header"] = "<patientName>Doe</patientName>"
    with read_fastmri(path) as volume:
        assert (volume.domain, volume.coils, volume.plane, volume.acquisition) == ("kspace", 2, (8, 6), "AXT1")
        assert volume.warnings == ("the ISMRMRD header is left out",)
        assert [plane.shape for plane in volume.targets()] == [(4, 4)] * 3
    assert raw_facts(path)[0] == "P1"
    with h5py.File(path, "r+") as file:
        file.attrs["acquisition"] = "Brain of Jane Doe"
    with read_fastmri(path) as volume:
        assert volume.acquisition is None
    (tmp_path / "b.h5").write_text("junk")
    assert raw_facts(tmp_path / "b.h5") == (None, None)
    with pytest.raises(InputError, match=r"^is not a readable HDF5 file"), read_fastmri(tmp_path / "b.h5"):
        pass


def test_size_is_refused_before_allocation(monkeypatch):
    check_size((100, 640, 640), 8, "it")
    with pytest.raises(InputError, match="it has shape"):
        check_size((100, 640), 8, "it")
    monkeypatch.setattr("fedmonai.data.cache.available_memory", lambda: 10**6)
    with pytest.raises(InputError, match="it declares 327,680,000 bytes"):
        check_size((100, 640, 640), 8, "it")


def test_frame_of_a_series(tmp_path):
    series = np.random.RandomState(0).rand(4, 5, 3, 6).astype(np.float32)
    path = _nifti(tmp_path / "t.nii.gz", series)
    with pytest.raises(InputError, match=r"6 volumes .* --frame 0 to 5"):
        read_nifti(path)
    one = read_nifti(_nifti(tmp_path / "one.nii.gz", series[..., 2]))
    np.testing.assert_array_equal(read_nifti(path, frame=2).data, one.data)
    np.testing.assert_array_equal(read_nifti(tmp_path / "one.nii.gz", frame=0).data, one.data)
    for frame in (6, -1):
        with pytest.raises(InputError, match="--frame 0 to 5"):
            read_nifti(path, frame=frame)


@pytest.mark.parametrize(
    ("shape", "axes"), [((8, 23, 18), "coil,row,column"), ((32, 32, 16, 1), "row,column,coil,slice")]
)
def test_axes_of_kspace_are_asked_about(tmp_path, shape, axes):
    np.save(tmp_path / "k.npy", np.ones(shape, np.complex64))
    with (
        pytest.raises(InputError, match=f"--axes, such as {axes}$"),
        read_array(tmp_path / "k.npy", "kspace", None, None),
    ):
        pass
    with read_array(tmp_path / "k.npy", "kspace", tuple(axes.split(",")), None) as volume:
        assert volume.coils == shape[axes.split(",").index("coil")] and len(volume) == 1
    with read_array(tmp_path / "k.npy", "image", None, None) as volume:
        assert "complex values taken as images; k-space needs --domain kspace" in volume.warnings
