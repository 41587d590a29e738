# SPDX-License-Identifier: Apache-2.0
"""Where samples come from: MR slices from HDF5 volumes, data lists, split manifests, simulated sites."""

from __future__ import annotations

from fedmonai.data.case_check import CaseProblem, check_cases, check_prostate, problem_table
from fedmonai.data.case_files import CaseVolume, read_case_file
from fedmonai.data.case_slices import CaseSliceDataset
from fedmonai.data.generated import (
    generate_fundus_federation,
    generate_octa_federation,
    generated_fundus_site,
    generated_octa_site,
)
from fedmonai.data.generated_mri import generate_mri_federation, generated_mri_site
from fedmonai.data.generated_prostate import generate_prostate_federation, generated_prostate_site
from fedmonai.data.kspace_dataset import KspaceDataset, collate_slices
from fedmonai.data.manifest import check_overlap, read_manifest, verify_manifest, write_manifest
from fedmonai.data.picture_folder import PictureFolder
from fedmonai.data.prostate import PROSTATE_SHARES, PROSTATE_SITES, prostate_cases, prostate_pictures, write_case_lists
from fedmonai.data.reconstruction_folder import ReconstructionFolder, one_volume
from fedmonai.data.round_batches import RoundBatches
from fedmonai.data.segmentation_folder import SegmentationFolder
from fedmonai.data.site_rows import simulate_sites
from fedmonai.data.subject_split import split_subjects
from fedmonai.data.volume_list import kspace_volumes
from fedmonai.data.weak_labels import make_weak_labels, report_weak_labels
from fedmonai.data.weak_lists import paired_files, release_files, volume_files, weak_files
from fedmonai.data.weak_slices import WeakSliceDataset

__all__ = [
    "PROSTATE_SHARES",
    "PROSTATE_SITES",
    "CaseProblem",
    "CaseSliceDataset",
    "CaseVolume",
    "KspaceDataset",
    "PictureFolder",
    "ReconstructionFolder",
    "RoundBatches",
    "SegmentationFolder",
    "WeakSliceDataset",
    "check_cases",
    "check_overlap",
    "check_prostate",
    "collate_slices",
    "generate_fundus_federation",
    "generate_mri_federation",
    "generate_octa_federation",
    "generate_prostate_federation",
    "generated_fundus_site",
    "generated_mri_site",
    "generated_octa_site",
    "generated_prostate_site",
    "kspace_volumes",
    "make_weak_labels",
    "one_volume",
    "paired_files",
    "problem_table",
    "prostate_cases",
    "prostate_pictures",
    "read_case_file",
    "read_manifest",
    "release_files",
    "report_weak_labels",
    "simulate_sites",
    "split_subjects",
    "verify_manifest",
    "volume_files",
    "weak_files",
    "write_case_lists",
    "write_manifest",
]
