# SPDX-License-Identifier: Apache-2.0
"""Conversion of DICOM, NIfTI, arrays and HDF5 files to the layout of fastMRI."""
