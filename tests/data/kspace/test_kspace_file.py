# SPDX-License-Identifier: Apache-2.0
"""A volume file is checked by its header: wrong or hostile declarations are refused before anything is read."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from fedmonai.data.kspace.read import open_volume, read_header, read_slice
from fedmonai.errors import ConfigError


def test_header_of_single_and_multi_coil(tmp_path, make_volume):
    single = read_header(make_volume(tmp_path / "a.h5", (3, 640, 372), (320, 320)))
    assert (single.slices, single.coils, single.rows, single.columns) == (3, 1, 640, 372)
    assert (single.target_key, single.multicoil, single.has_mask) == ("reconstruction_esc", False, False)
    multi = read_header(make_volume(tmp_path / "b.h5", (2, 4, 8, 6), None, mask=np.ones(6)))
    assert (multi.slices, multi.coils, multi.target_key) == (2, 4, None)
    assert multi.multicoil and multi.has_mask


@pytest.mark.parametrize(
    ("resolution", "size"), [(256, (256, 256)), (320, (320, 320)), (1000, (320, 320)), (100, (100, 100))]
)
def test_image_size_is_the_smallest_of_resolution_kspace_and_target(tmp_path, make_volume, resolution, size):
    assert read_header(make_volume(tmp_path / "a.h5", (1, 640, 372), (320, 320))).image_size(resolution) == size


def test_image_size_without_target(tmp_path, make_volume):
    assert read_header(make_volume(tmp_path / "a.h5", (1, 640, 372), None)).image_size(400) == (400, 372)


def test_missing_and_damaged_files_are_named(tmp_path, make_volume):
    with pytest.raises(ConfigError, match=r"no\.h5 does not exist"):
        read_header(tmp_path / "no.h5")
    whole = make_volume(tmp_path / "cut.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"cut\.h5 is not a readable HDF5 file"):
        read_header(tmp_path / "cut.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(ConfigError, match=r"text\.h5 is not a readable HDF5 file"):
        read_header(tmp_path / "text.h5")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "no dataset 'kspace'"),
        ({"kspace": np.zeros((4, 4), np.complex64)}, r"shape \(4, 4\)"),
        ({"kspace": np.zeros((1, 2, 3, 4, 5), np.complex64)}, "expected"),
        ({"kspace": np.zeros((2, 4, 4), np.float32)}, "float32, expected complex64"),
        ({"kspace": np.zeros((0, 4, 4), np.complex64)}, "0 slices"),
        ({"kspace": np.zeros((1, 5000, 2), np.complex64)}, "5000 rows, allowed are 1 to 4096"),
        ({"kspace": np.zeros((2, 4, 4), np.complex64), "mask": np.ones(5)}, r"'mask' is float64 \(5,\)"),
        ({"kspace": np.zeros((2, 4, 4), np.complex64), "reconstruction_esc": np.ones((3, 4, 4))}, "expected real"),
        ({"kspace": np.zeros((2, 4, 4), np.complex64), "reconstruction_esc": np.ones((4, 4))}, "expected real"),
    ],
)
def test_wrong_content_is_refused(tmp_path, content, reason):
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        for key, value in content.items():
            file[key] = value
    with pytest.raises(ConfigError, match=reason) as caught:
        read_header(tmp_path / "bad.h5")
    assert "bad.h5" in str(caught.value)


def test_kspace_as_a_group_is_refused(tmp_path):
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file.create_group("kspace")
    with pytest.raises(ConfigError, match="'kspace' is a group, expected a dataset"):
        read_header(tmp_path / "bad.h5")


@pytest.mark.parametrize(
    ("shape", "chunks", "reason"),
    [
        ((8000, 4096, 4096), (1, 64, 64), "bytes but stores 0"),  # a terabyte that was never written
        ((1, 256, 4096, 4096), (1, 1, 64, 64), "bytes but stores 0"),
        ((10**6, 10**6, 10**6), (1, 64, 64), "bytes but stores 0"),
    ],
)
def test_declared_size_is_refused_before_allocation(tmp_path, shape, chunks, reason):
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file.create_dataset("kspace", shape, np.complex64, chunks=chunks)
    with pytest.raises(ConfigError, match=reason):
        read_header(tmp_path / "huge.h5")


def test_one_slice_above_the_limit_is_refused(tmp_path, make_volume, monkeypatch):
    path = make_volume(tmp_path / "a.h5", (1, 2, 64, 64), None)
    monkeypatch.setattr("fedmonai.data.kspace.read.MAX_SLICE_BYTES", 2 * 64 * 64 * 8 - 1)
    with pytest.raises(ConfigError, match="one k-space slice declares 65,536 bytes, allowed are 65,535"):
        read_header(path)


def test_huge_chunks_are_refused(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("kspace", data=np.ones((8, 8, 8), np.complex64), chunks=(8, 8, 8))
    monkeypatch.setattr("fedmonai.data.kspace.read.MAX_SLICE_BYTES", 8**3 * 8 - 1)
    with pytest.raises(ConfigError, match="chunks"):
        read_header(tmp_path / "a.h5")


def test_data_in_other_files_are_refused(tmp_path, make_volume):
    other = make_volume(tmp_path / "other.h5")
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file["kspace"] = h5py.ExternalLink(str(other), "kspace")
    with h5py.File(tmp_path / "soft.h5", "w") as file:
        file["kspace"] = h5py.SoftLink("/elsewhere")
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((3, 8, 6), np.complex64)
        layout[:] = h5py.VirtualSource(str(other), "kspace", (3, 8, 6))
        file.create_virtual_dataset("kspace", layout)
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset("kspace", (3, 8, 6), np.complex64, external=[(str(tmp_path / "x.bin"), 0, 3 * 8 * 6 * 8)])
    for name, reason in {"external": "link", "soft": "link", "virtual": "another file", "raw": "another file"}.items():
        with pytest.raises(ConfigError, match=reason):
            read_header(tmp_path / f"{name}.h5")


def test_unreadable_slice_is_named(tmp_path):
    path = tmp_path / "rotten.h5"
    with h5py.File(path, "w") as file:
        noise = np.random.RandomState(0).rand(2, 64, 64).astype(np.complex64)
        data = file.create_dataset("kspace", data=noise, chunks=(1, 64, 64), compression="gzip")
        place = data.id.get_chunk_info(1)
    blob = bytearray(path.read_bytes())
    blob[place.byte_offset + 10 : place.byte_offset + 40] = bytes(30)
    path.write_bytes(blob)
    with open_volume(path) as file:
        assert read_slice(file, "kspace", 0).shape == (64, 64)
        with pytest.raises(ConfigError, match=r"rotten\.h5: cannot read 'kspace' 1"):
            read_slice(file, "kspace", 1)


def test_random_damage_never_ends_in_another_error(tmp_path, make_volume):
    """Overwritten bytes anywhere in the metadata: the file is read, or refused by a message with its name."""
    whole = make_volume(tmp_path / "a.h5", (2, 8, 6), (8, 6), mask=np.ones(6), patient_id="x").read_bytes()
    rng = np.random.RandomState(0)
    refused = 0
    for _ in range(120):
        blob = bytearray(whole)
        for place in rng.randint(0, len(blob) * 2 // 3, rng.choice([1, 5, 20])):
            blob[place] = rng.randint(256)
        (tmp_path / "b.h5").write_bytes(blob)
        try:
            header = read_header(tmp_path / "b.h5")
            with open_volume(tmp_path / "b.h5") as file:
                read_slice(file, "kspace", header.slices - 1)
        except ConfigError as error:
            assert "b.h5" in str(error)
            refused += 1
    assert 20 < refused < 120
