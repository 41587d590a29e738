# SPDX-License-Identifier: Apache-2.0
"""Check a folder of prostate MRI in the layout of the public six-site set, and write its case lists.

python scripts/prepare_prostate.py --dataset_dir DIR --check       # report problems only, exit code 1 if any
python scripts/prepare_prostate.py --dataset_dir DIR               # check, then write <site>/{train,val,test}.txt
python scripts/prepare_prostate.py --dataset_dir DIR --sites HK,UCL --seed 3
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fedmonai.command_line import run_command
from fedmonai.data.cases.check import check_prostate, problem_table
from fedmonai.data.cases.list import PROSTATE_FRACTIONS, write_case_lists
from fedmonai.errors import ConfigError


def main(
    dataset_dir: str,
    check: bool = False,
    sites: str | Sequence[str] | None = None,
    split_fractions: Sequence[float] = PROSTATE_FRACTIONS,
    seed: int = 0,
    label_suffix: str = "_segmentation",
) -> None:
    """Check <dataset_dir>/<site>/CaseXX.nii.gz with CaseXX_segmentation.nii.gz; write the case lists if all is well.

    Args:
        dataset_dir: folder with one folder per site.
        check: report only; write nothing.
        sites: comma-separated; all folders with NIfTI files if left out.
        split_fractions: of train, val and test.
        seed: of the random choice of cases.
        label_suffix: what a mask's name has behind the case's.
    """
    chosen = sites.split(",") if isinstance(sites, str) else sites
    try:
        count, problems = check_prostate(dataset_dir, chosen, label_suffix)
        if problems:
            print(problem_table(problems))
            print(f"\n{len(problems)} problem(s) in {count} cases")
            sys.exit(1)
        print(f"{count} cases checked, no problem found")
        if check:
            return
        for site in chosen or sorted(path.name for path in Path(dataset_dir).iterdir() if any(path.glob("*.nii*"))):
            lists = write_case_lists(dataset_dir, site, split_fractions, seed)
            print(f"{site}: " + ", ".join(f"{len(cases)} {split}" for split, cases in lists.items()))
    except ConfigError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    run_command(main, lambda result: 0)
