# SPDX-License-Identifier: Apache-2.0
"""Check of a folder of prostate MRI in the layout of the public six-site set, and its case lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedmonai.data.cases.check import check_prostate, problem_table
from fedmonai.data.cases.list import write_case_lists


def prepare_prostate(
    dataset_dir: str,
    check: bool = False,
    sites: str | Sequence[str] | None = None,
    split_fractions: Sequence[float] = (0.62, 0.17, 0.21),
    seed: int = 0,
    label_suffix: str = "_segmentation",
) -> int:
    """Check <dataset_dir>/<site>/CaseXX.nii.gz with CaseXX_segmentation.nii.gz; write the case lists if all are right.

    Args:
        dataset_dir: folder with one folder per site.
        check: report only; write nothing.
        sites: comma-separated; all folders with NIfTI files if left out.
        split_fractions: of train, val and test.
        seed: of the random choice of cases.
        label_suffix: what a mask's name has after the case's.
    """
    chosen = sites.split(",") if isinstance(sites, str) else sites
    count, problems = check_prostate(dataset_dir, chosen, label_suffix)
    if problems:
        print(f"{problem_table(problems)}\n\n{len(problems)} problem(s) in {count} cases")
        return 1
    print(f"{count} cases checked, no problem found")
    if check:
        return 0
    for site in chosen or sorted(path.name for path in Path(dataset_dir).iterdir() if any(path.glob("*.nii*"))):
        lists = write_case_lists(dataset_dir, site, split_fractions, seed)
        print(f"{site}: " + ", ".join(f"{len(cases)} {split}" for split, cases in lists.items()))
    return 0
