# SPDX-License-Identifier: Apache-2.0
"""The right reader for a source found in a folder."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from fedmonai.data.convert.dicom import read_series
from fedmonai.data.convert.readers import read_array, read_fastmri, read_nifti
from fedmonai.data.convert.volume import Source, Volume


def open_source(
    source: Source,
    axis: int = 2,
    domain: str = "image",
    axes: tuple[str, ...] | None = None,
    key: str | None = None,
) -> AbstractContextManager[Volume]:
    """Open a source as a volume; leave the context only when its slices have been read.

    Args:
        source: a DICOM series, a NIfTI file, an array file or a fastMRI file.
        axis: voxel axis of a NIfTI image that counts the slices.
        domain: ``image`` or ``kspace``, of ``.npy`` and ``.mat`` arrays.
        axes: names of the axes of such an array; None = by rank.
        key: variable of a ``.mat`` file; None = the only numeric one.

    Raises:
        InputError: damaged, or not what its suffix says.
    """
    path = source.files[0]
    if source.kind == "dicom":
        return nullcontext(read_series(source.files))
    if source.kind == "nifti":
        return nullcontext(read_nifti(path, axis))
    if source.kind == "hdf5":
        return read_fastmri(path)
    return read_array(path, domain, axes, key)
