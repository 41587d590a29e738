# SPDX-License-Identifier: Apache-2.0
"""Mutated files for every reader of data and states: each is read whole, or refused by one error that the user sees.

As a program it runs one reader over many files, with a limit on memory and on the time for each file, and prints what
happened as JSON: ``python tests/reader_fuzz.py hdf5 500 folder``.
"""

from __future__ import annotations

import faulthandler
import gzip
import io
import json
import struct
import sys
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import scipy.io
import torch
from dicom_files import write_dicom
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from fedmonai.data.cache import _memory_map
from fedmonai.data.cases.dataset import CaseSliceDataset
from fedmonai.data.cases.read import read_case_file, volume_shape
from fedmonai.data.convert.dicom import read_series
from fedmonai.data.convert.readers import raw_facts, read_array, read_fastmri, read_nifti
from fedmonai.data.kspace.dataset import KspaceDataset
from fedmonai.data.pictures import read_picture
from fedmonai.data.weak.dataset import WeakSliceDataset
from fedmonai.data.weak.folder import PictureFolder
from fedmonai.data.weak.read import read_picture_mask
from fedmonai.errors import ConfigError
from fedmonai.io import load_checked, read_weights

SECONDS = 20.0  # for one file of a few kilobytes; reading it takes milliseconds
MEMORY = 8 << 30  # addresses on top of those of the libraries; pydicom asks for the 4 GiB that a length can declare
RESIDENT = 1 << 30  # memory that may have been used in the end; the files are of a few kilobytes
RNG = np.random.RandomState(0)
Bytes = bytes
Mutate = Callable[[Bytes], Bytes]


def mutated(blob: Bytes, rng: np.random.RandomState) -> Bytes:
    """One to six of: a bit flipped, bytes drawn, an extreme number, a piece cut or doubled, the end cut."""
    out = bytearray(blob)
    for _ in range(rng.randint(1, 7)):
        if len(out) < 16:
            break
        # headers come first: half of the places lie in them
        place = rng.randint(len(out) if rng.rand() < 0.5 else min(len(out), 512))
        kind = rng.randint(7)
        if kind == 0:
            out[place] ^= 1 << rng.randint(8)
        elif kind == 1:
            out[place : place + 4] = rng.bytes(min(4, len(out) - place))
        elif kind == 2:
            extreme = rng.choice([0, 1, 0x7F, 0xFF, 0x7FFF, 0x8000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
            width, order = int(rng.choice([1, 2, 4, 8])), rng.choice(["little", "big"])
            out[place : place + width] = (int(extreme) & (256**width - 1)).to_bytes(width, order)  # type: ignore[arg-type]
        elif kind == 3:
            number = rng.choice([np.nan, np.inf, -np.inf, 1e38, -1e-38])
            out[place : place + 4] = struct.pack("<f", number)
        elif kind == 4:
            del out[place : place + rng.randint(1, 64)]
        elif kind == 5:
            out[place:place] = out[place : place + rng.randint(1, 64)]
        elif rng.rand() < 0.3:
            del out[place:]
    return bytes(out)


def inside_gzip(blob: Bytes, mutate: Mutate) -> Bytes:
    return gzip.compress(mutate(gzip.decompress(blob)))


def inside_png(blob: Bytes, mutate: Mutate) -> Bytes:
    """Chunks mutated one by one, with the checksums that belong to them."""
    out, position = bytearray(blob[:8]), 8
    while position < len(blob):
        (size,) = struct.unpack_from(">I", blob, position)
        chunk = mutate(blob[position + 4 : position + 8 + size])
        out += struct.pack(">I", max(0, len(chunk) - 4)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        position += 12 + size
    return bytes(out)


def inside_zip(blob: Bytes, mutate: Mutate) -> Bytes:
    """The pickle of a state mutated, in an archive that is whole."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(blob)) as archive, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target:
        for entry in archive.infolist():
            content = archive.read(entry)
            target.writestr(entry.filename, mutate(content) if entry.filename.endswith("data.pkl") else content)
    return out.getvalue()


def inside_mat(blob: Bytes, mutate: Mutate) -> Bytes:
    """What lies in the compressed elements of a file of version 7 mutated; others are left to the plain mutation."""
    if blob[128:132] != struct.pack("<I", 15):
        return mutate(blob)
    out, position = bytearray(blob[:128]), 128
    while position < len(blob):
        kind, size = struct.unpack_from("<II", blob, position)
        content = zlib.compress(mutate(zlib.decompress(blob[position + 8 : position + 8 + size])))
        out += struct.pack("<II", kind, len(content)) + content
        position += 8 + size
    return bytes(out)


INSIDE: dict[str, Callable[[Bytes, Mutate], Bytes]] = {
    ".gz": inside_gzip,
    ".mat": inside_mat,
    ".png": inside_png,
    ".pt": inside_zip,
}


def nifti_files(folder: Path) -> None:
    voxels = RNG.rand(7, 6, 5).astype(np.float32)
    for name in ("a.nii", "b.nii.gz"):
        nib.save(nib.Nifti1Image(voxels, np.diag([0.5, 0.6, 3.0, 1.0])), folder / name)
    scaled = nib.Nifti1Image((voxels * 100).astype(np.int16), np.eye(4))
    scaled.header.set_slope_inter(0.5, 3)
    nib.save(scaled, folder / "c.nii")
    nib.save(nib.Nifti2Image(voxels, np.eye(4)), folder / "d.nii")


def read_nifti_file(path: Path) -> Iterator[Any]:
    yield volume_shape(path)
    yield read_case_file(path).values.shape
    yield np.shape(read_nifti(path).data)
    dataset = CaseSliceDataset([{"image": str(path), "volume": "a"}], labeled=False)
    yield from (item["image"] for item in (dataset[0], dataset[len(dataset) - 1]))


def hdf5_files(folder: Path) -> None:
    kspace = (RNG.rand(2, 3, 8, 6) + 1j * RNG.rand(2, 3, 8, 6)).astype(np.complex64)
    with h5py.File(folder / "kspace.h5", "w") as file:
        file["kspace"], file["reconstruction_rss"], file["mask"] = kspace, np.abs(kspace).sum(1), np.ones(6)
        file.attrs.update({"patient_id": "x", "acquisition": "AXT1", "affine": np.eye(4), "max": 1.0})
    with h5py.File(folder / "kspace_gzip.h5", "w", libver="latest") as file:
        file.create_dataset("kspace", data=kspace[:, 0], chunks=(1, 8, 6), compression="gzip")
        file.create_dataset("reconstruction_esc", data=np.abs(kspace[:, 0]), chunks=(1, 8, 6), fletcher32=True)
        file.attrs["patient_id"] = "x" * 300
    for name, shape in (("weak_plane.h5", (8, 8)), ("weak_volume.h5", (3, 8, 8))):
        with h5py.File(folder / name, "w") as file:
            file.create_dataset("image", data=RNG.rand(*shape).astype(np.float32), compression="gzip", shuffle=True)
            for key in ("mask", "scribble"):
                file.create_dataset(key, data=RNG.randint(0, 2, shape).astype(np.uint8), compression="gzip")


def read_hdf5_file(path: Path) -> Iterator[Any]:
    if path.name.startswith("kspace"):
        yield raw_facts(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no target: a damaged name of one
            dataset = KspaceDataset([{"kspace": str(path), "volume": "a"}], resolution=8)
        yield from (value for item in dataset for value in item.values())
        yield from (fingerprint.content for fingerprint in dataset.volume_fingerprints())
        with read_fastmri(path) as volume:
            yield from (np.shape(plane) for plane in volume.planes())
    else:
        entry = {"image": str(path), "volume": "a"}
        dataset = WeakSliceDataset([entry], num_classes=2, size=8)
        yield from (item["image"] for item in dataset)
        yield from (fingerprint.content for fingerprint in dataset.volume_fingerprints())
        yield PictureFolder(str(path), image_channels=1, size=8)[0]["image"]


def mat_files(folder: Path) -> None:
    image = (RNG.rand(4, 5, 3) + 1j).astype(np.complex64)
    for name, options in (("a.mat", {}), ("b.mat", {"do_compression": True})):
        scipy.io.savemat(folder / name, {"im": image, "te": 3.0}, **options)
        blob = (folder / name).read_bytes()
        (folder / name).write_bytes(b"MATLAB 5.0 MAT-file".ljust(116) + blob[116:])  # without the time of day
    with h5py.File(folder / "d.mat", "w", userblock_size=512) as file:
        record = np.zeros(image.T.shape, np.dtype([("real", "f4"), ("imag", "f4")]))
        record["real"] = image.T.real
        file["im"] = record
        file.create_group("#refs#")


def npy_files(folder: Path) -> None:
    np.save(folder / "a.npy", RNG.rand(3, 4, 5))
    np.save(folder / "b.npy", np.asfortranarray(RNG.rand(4, 5).astype(np.complex64)))


def read_array_file(path: Path) -> Iterator[Any]:
    with read_array(path, "image", None, None) as volume:
        yield from (np.shape(plane) for plane in volume.planes())
    if path.suffix == ".npy":
        yield np.shape(_memory_map(str(path)))


def picture_files(folder: Path) -> None:
    pixels = RNG.randint(0, 255, (9, 7, 3)).astype(np.uint8)
    for name in ("color.png", "color.jpg", "color.tif", "color.bmp"):
        Image.fromarray(pixels).save(folder / name)
    Image.fromarray(pixels[..., 0]).save(folder / "gray.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(folder / "deep.png")
    Image.fromarray(pixels[..., 0].astype(np.float32)).save(folder / "float.tif", compression="tiff_deflate")


def read_picture_file(path: Path) -> Iterator[Any]:
    yield read_picture(str(path)).shape
    yield read_case_file(path).values.shape
    yield read_picture_mask(str(path), None, 100).shape


def dicom_files(folder: Path) -> None:
    for name, syntax in (("a.dcm", ExplicitVRLittleEndian), ("b.dcm", ImplicitVRLittleEndian)):
        pixels = np.frombuffer(RNG.bytes(48), np.uint16).reshape(6, 4)
        write_dicom(folder / name, pixels, syntax, PatientID="X", RescaleSlope=2, RescaleIntercept=1)


def read_dicom_file(path: Path) -> Iterator[Any]:
    yield np.shape(read_series([path]).data)


def state_files(folder: Path) -> None:
    weights = {"conv.weight": torch.rand(4, 3), "bn.running_mean": torch.rand(4).double(), "steps": torch.tensor(7)}
    torch.save({"model": weights, "round": 3, "names": ["a", "b"]}, folder / "a.pt")
    torch.save(weights, folder / "b.pt")


def read_state_file(path: Path) -> Iterator[Any]:
    yield type(load_checked(path))
    yield len(read_weights(path, "init_ckpt"))


READERS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Iterator[Any]]]] = {
    "nifti": (nifti_files, read_nifti_file),
    "hdf5": (hdf5_files, read_hdf5_file),
    "mat": (mat_files, read_array_file),
    "npy": (npy_files, read_array_file),
    "picture": (picture_files, read_picture_file),
    "dicom": (dicom_files, read_dicom_file),
    "state": (state_files, read_state_file),
}


def fuzz(reader: str, count: int, folder: Path, seed: int = 0, seconds: float | None = None) -> dict[str, Any]:
    """Read ``count`` mutants of the reader's files.

    Args:
        seconds: end the process, with the stack, when one file takes longer; None sets no limit.

    Returns:
        how many were ``read`` whole and how many ``refused``, and the ``faults``: what else was raised, or handed on.
    """
    make, read = READERS[reader]
    sources, mutants = folder / "sources", folder / "mutants"
    for path in (sources, mutants):
        path.mkdir(parents=True)
    make(sources)
    files = sorted(sources.iterdir())
    for path in files:
        list(read(path))  # the files themselves are good
    counts: Counter[str] = Counter(read=0, refused=0)
    faults = []
    for index in range(count):
        rng = np.random.RandomState([seed, index])
        source = files[index % len(files)]
        inside = INSIDE.get(source.suffix)
        blob = source.read_bytes()
        mutate: Mutate = lambda content, rng=rng: mutated(content, rng)  # noqa: E731
        path = mutants / source.name
        path.write_bytes(inside(blob, mutate) if inside and rng.rand() < 0.5 else mutate(blob))
        if seconds is not None:
            faulthandler.dump_traceback_later(seconds, exit=True)
        try:
            for value in read(path):
                if isinstance(value, torch.Tensor) and not bool(torch.isfinite(value).all()):
                    faults.append(f"{source.name} {index}: values that are not finite were handed on")
            counts["read"] += 1
        except ConfigError as error:
            counts["refused"] += 1
            if _from_memory(error):
                faults.append(f"{source.name} {index}: memory ran out before it was refused")
            if "\n" in str(error):
                faults.append(f"{source.name} {index}: refused in more than one line: {error}")
        except Exception as error:  # what this looks for
            faults.append(f"{source.name} {index}: {type(error).__name__}: {error}")
        finally:
            faulthandler.cancel_dump_traceback_later()
    return {**counts, "faults": faults}


def _from_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__
    return False


def main(reader: str, count: str, folder: str, seed: str = "0") -> None:
    import resource

    faulthandler.enable()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = fuzz(reader, int(count), Path(folder), int(seed), SECONDS)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > RESIDENT:
        result["faults"].append(f"{grown:,} bytes of memory were used")
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
