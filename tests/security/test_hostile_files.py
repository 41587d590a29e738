# SPDX-License-Identifier: Apache-2.0
"""Files that somebody made to do harm: one clear error, nothing executed, no gigabyte allocated."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import resource
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_files import write_dicom

from fedmonai.bundle.lint_files import weights_problems
from fedmonai.data.cases.read import read_case_file, volume_shape
from fedmonai.data.convert.dicom import read_series
from fedmonai.data.convert.readers import read_array, read_nifti
from fedmonai.data.damage import InputError
from fedmonai.data.kspace.dataset import KspaceDataset
from fedmonai.data.kspace.list import kspace_volumes
from fedmonai.data.kspace.read import read_header
from fedmonai.data.provenance import read_manifest
from fedmonai.errors import ConfigError
from fedmonai.federated.checkpoint import start_from
from fedmonai.io import load_checked
from fedmonai.networks.prepare import load_weights

MEGABYTE = 1 << 20
NETWORK = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """No test may make the process grow by more than 400 MB, libraries that it loads included."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 400, f"{grown:.0f} MB allocated"


class Evil:
    """Leaves a file where it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.witness,))


def evil_pickle(path: Path, witness: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": Evil(witness)}))


def evil_checkpoint(path: Path, witness: Path) -> None:
    torch.save({"weight": torch.zeros(2, 3), "bias": Evil(witness)}, path)


def evil_under_model(path: Path, witness: Path) -> None:
    torch.save({"model": NETWORK, "optimizer": Evil(witness)}, path)


def evil_module(path: Path, witness: Path) -> None:
    torch.save(torch.nn.Linear(3, 2), path)


READERS: dict[str, Callable[[Path], Any]] = {
    "state of a run": load_checked,
    "init_ckpt": lambda path: start_from(path, NETWORK),
    "ckpt_path": lambda path: load_weights(torch.nn.Linear(3, 2), path),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("make", [evil_pickle, evil_checkpoint, evil_under_model, evil_module])
def test_pickle_in_a_weight_file_is_not_executed(make: Callable, reader: str, tmp_path: Path) -> None:
    path, witness = tmp_path / "model.pt", tmp_path / "executed"
    make(path, witness)
    with pytest.raises(ConfigError, match=r"model\.pt"):
        READERS[reader](path)
    assert not witness.exists()
    assert len(list(weights_problems(path))) == 1


def huge_storage(path: Path) -> None:
    """The record of a tensor of ten numbers, said to hold two billion."""
    torch.save({"weight": torch.zeros(10)}, path)
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as good, zipfile.ZipFile(path, "w") as bad:
        for entry in good.infolist():
            content = good.read(entry)
            if entry.filename.endswith("data.pkl"):
                content = content.replace(b"K\n", b"J\x00\x00\x00\x7f")
            bad.writestr(entry.filename, content)


def expanded(path: Path) -> None:
    """Four bytes, said to be a terabyte by strides of zero."""
    torch.save({"weight": torch.zeros(1).expand(1 << 20, 1 << 18)}, path)


def compressed(path: Path) -> None:
    torch.save({"weight": torch.zeros(MEGABYTE)}, path)
    content = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(content) as good, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bad:
        for entry in good.infolist():
            bad.writestr(entry.filename, good.read(entry))


@pytest.mark.parametrize("reader", ["init_ckpt", "ckpt_path"])
@pytest.mark.parametrize("make", [huge_storage, expanded, compressed])
def test_huge_tensor_in_a_small_weight_file(make: Callable, reader: str, tmp_path: Path) -> None:
    make(tmp_path / "model.pt")
    assert (tmp_path / "model.pt").stat().st_size < 10_000 or make is compressed
    with pytest.raises(ConfigError, match=r"model\.pt"):
        READERS[reader](tmp_path / "model.pt")


def test_flipped_bit_in_weights_for_inference(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    network = torch.nn.Linear(30, 20)
    torch.save(network.state_dict(), path)
    data = bytearray(path.read_bytes())
    data[data.index(network.weight.detach().numpy().tobytes()) + 3] ^= 64
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="checksum"):
        load_weights(network, path)


@pytest.mark.parametrize(
    "entry", ["../secret.h5", "{root}/secret.h5", "link.h5", "folder/secret.h5", "a/../../secret.h5"]
)
def test_data_list_cannot_lead_out_of_its_folder(entry: str, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "a").mkdir(parents=True)
    (tmp_path / "secret.h5").write_bytes(b"secret")
    (site / "link.h5").symlink_to(tmp_path / "secret.h5")
    (site / "folder").symlink_to(tmp_path)
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps({"training": [{"kspace": entry.format(root=tmp_path)}], "validation": []}))
    with pytest.raises(ConfigError, match="leads out of"):
        kspace_volumes(site, "train", data_list=listed)


@pytest.mark.parametrize("text", ["[" * 100_000, "\0", '{"training": [' + "1," * 10, "{}", '{"training": {"a": 1}}'])
def test_data_list_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(ConfigError, match=r"list\.json"):
        kspace_volumes(tmp_path, "train", data_list=tmp_path / "list.json")
    with pytest.raises(ConfigError, match=r"list\.json"):
        read_manifest(tmp_path / "list.json")


def write_h5(path: Path) -> bytes:
    with h5py.File(path, "w") as stream:
        stream["kspace"] = np.ones((4, 16, 16), np.complex64)
        stream["reconstruction_esc"] = np.ones((4, 16, 16), np.float32)
    return path.read_bytes()


def test_truncated_h5(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    whole = write_h5(path)
    volumes = [{"kspace": str(path), "volume": "scan"}]
    for share in (0.0, 0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ConfigError, match=r"scan\.h5"):
            KspaceDataset(volumes, resolution=16)[0]


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_truncated_nifti(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    nib.save(nib.Nifti1Image(np.random.RandomState(0).rand(8, 8, 4).astype(np.float32), np.eye(4)), path)
    whole = path.read_bytes()
    for share in (0.0, 0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ConfigError, match=r"scan\.nii"):
            read_case_file(path)
        with pytest.raises(InputError):
            read_nifti(path)


def test_truncated_dicom_and_huge_declared_size(tmp_path: Path) -> None:
    path = tmp_path / "scan.dcm"
    pixels = np.zeros((8, 8))
    whole = write_dicom(path, pixels).read_bytes()
    assert read_series([path]).data.shape == (1, 8, 8)
    for share in (0.0, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError):
            read_series([path])
    write_dicom(path, pixels, Rows=65535, Columns=65535)
    with pytest.raises(InputError):
        read_series([path])


def nifti_header(*shape: int) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float64)
    header.set_data_shape(shape)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return header.binaryblock + bytes(104)


def png_header(side: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def npy_header(*shape: int) -> bytes:
    text = repr({"descr": "<f8", "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + bytes(64)


HUGE: dict[str, bytes] = {
    "scan.nii": nifti_header(4096, 4096, 4096),
    "scan.nii.gz": gzip.compress(nifti_header(4096, 4096, 4096)),
    "small.nii.gz": gzip.compress(nifti_header(512, 512, 512)),
    "sides.nii": nifti_header(32767, 1, 1),
    "scan.png": png_header(100_000),
    "short.png": png_header(4000),
}


@pytest.mark.parametrize("name", HUGE)
def test_huge_declared_shape_in_a_small_image(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(HUGE[name])
    for read in (read_case_file, volume_shape):
        with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
            read(tmp_path / name)
    if ".nii" in name:
        with pytest.raises(InputError):
            read_nifti(tmp_path / name)


def test_huge_or_pickled_npy(tmp_path: Path) -> None:
    path = tmp_path / "scan.npy"
    path.write_bytes(npy_header(4096, 4096, 4096))
    with pytest.raises(InputError), read_array(path, "image", None, None):
        pass
    witness = tmp_path / "executed"
    np.save(path, np.array([Evil(witness)], dtype=object), allow_pickle=True)
    with pytest.raises(InputError), read_array(path, "image", None, None):
        pass
    assert not witness.exists()


def test_huge_declared_kspace(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as stream:
        stream.create_dataset("kspace", shape=(8000, 200, 4000, 4000), dtype=np.complex64, chunks=(1, 1, 64, 64))
    assert path.stat().st_size < MEGABYTE
    with pytest.raises(ConfigError, match=r"scan\.h5"):
        read_header(path)


def test_data_of_a_volume_cannot_lie_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write_h5(tmp_path / "secret.h5")
    with h5py.File(path, "w") as stream:
        stream["kspace"] = h5py.ExternalLink(os.fspath(tmp_path / "secret.h5"), "kspace")
    with pytest.raises(ConfigError, match="is a link"):
        read_header(path)
