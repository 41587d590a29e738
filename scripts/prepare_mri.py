# SPDX-License-Identifier: Apache-2.0
"""Prepare an MR dataset: DICOM, NIfTI, .npy, .mat or fastMRI HDF5 to <output>/[<sequence>/]<train|val|test>/*.h5.

Look first (writes nothing), then convert:

    python scripts/prepare_mri.py --input scans --sequence T1 --check
    python scripts/prepare_mri.py --input scans --output data/my_site --sequence T1

Inputs that are split by folder already, and a single volume cut into blocks of slices:

    python scripts/prepare_mri.py --input scans/test --output data/my_site --sequence T1 --split test
    python scripts/prepare_mri.py --input one_subject.nii.gz --output data/my_site --sequence T1 --split slices:38,6,10

After an interruption add --resume. All options: python scripts/prepare_mri.py -- --help
"""

from __future__ import annotations

from fedmonai.command_line import run_command
from fedmonai.data.convert.prepare import prepare_mri
from fedmonai.data.convert.writer import Summary


def report(summary: Summary) -> int:
    print(summary)
    return summary.exit_code


if __name__ == "__main__":
    run_command(prepare_mri, report)
