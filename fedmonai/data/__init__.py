# SPDX-License-Identifier: Apache-2.0
"""Where samples come from: MR slices from HDF5 volumes, data lists, split manifests, simulated sites."""

from __future__ import annotations

from fedmonai.data.case_check import CaseProblem, check_cases, check_prostate, problem_table
from fedmonai.data.case_files import CaseVolume, read_case_file
from fedmonai.data.case_slices import CaseSliceDataset
from fedmonai.data.kspace_dataset import KspaceDataset, collate_slices
from fedmonai.data.manifest import check_overlap, read_manifest, verify_manifest, write_manifest
from fedmonai.data.prostate import PROSTATE_SHARES, PROSTATE_SITES, prostate_cases, prostate_pictures, write_case_lists
from fedmonai.data.site_rows import simulate_sites
from fedmonai.data.subject_split import split_subjects
from fedmonai.data.volume_list import kspace_volumes

__all__ = [
    "PROSTATE_SHARES",
    "PROSTATE_SITES",
    "CaseProblem",
    "CaseSliceDataset",
    "CaseVolume",
    "KspaceDataset",
    "check_cases",
    "check_overlap",
    "check_prostate",
    "collate_slices",
    "kspace_volumes",
    "problem_table",
    "prostate_cases",
    "prostate_pictures",
    "read_case_file",
    "read_manifest",
    "simulate_sites",
    "split_subjects",
    "verify_manifest",
    "write_case_lists",
    "write_manifest",
]
