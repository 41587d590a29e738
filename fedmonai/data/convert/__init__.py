# SPDX-License-Identifier: Apache-2.0
"""From what a scanner or an archive delivers (DICOM, NIfTI, arrays, HDF5) to the fastMRI-style layout."""
