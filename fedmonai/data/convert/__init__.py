# SPDX-License-Identifier: Apache-2.0
"""From what a scanner or an archive delivers (DICOM, NIfTI, arrays, HDF5) to the fastMRI-style layout."""

from __future__ import annotations

from fedmonai.data.convert.prepare import prepare_mri
from fedmonai.data.convert.summary import Summary

__all__ = ["Summary", "prepare_mri"]
