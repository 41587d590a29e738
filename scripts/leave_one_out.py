# SPDX-License-Identifier: Apache-2.0
"""IOP-FL outside, for every site in turn: train a federation without it, adapt to its unlabeled images, make a table.

    python scripts/leave_one_out.py --output_dir runs/leave_one_out
    python scripts/leave_one_out.py --output_dir runs/loo --config_file "['configs/federated.yaml','configs/demo.yaml']"
    python scripts/leave_one_out.py --output_dir runs/loo --outside_sites HK --num_rounds 20 --outside "{'passes': 5}"
    python scripts/leave_one_out.py --output_dir runs/prostate_outside --plan scripts/plans/outside/prostate.yaml

A plan has several seeds and several ways to adapt. The same command continues after an interruption. Further options
are ids of federated.yaml (--local::lr 5e-4).
"""

from __future__ import annotations

import sys
from pathlib import Path

import fire

from fedmonai.errors import root_user_error
from fedmonai.experiments.leave_one_out import leave_one_out, run_plan
from fedmonai.report.outside import write_outside_report


def main(output_dir: str, plan: str | None = None, **options: object) -> None:
    """Run what is not done yet and write <output_dir>/leave_one_out.md; options as in the text above."""
    try:
        if plan is None:
            about, results = "", {0: leave_one_out(output_dir, **options)}  # type: ignore[arg-type]
        else:
            about, results = run_plan(plan, output_dir, **options)  # type: ignore[arg-type]
        print(write_outside_report(results, Path(output_dir) / "leave_one_out.md", about), end="")
    except Exception as error:
        mistake = root_user_error(error)
        if mistake is None:
            raise
        sys.exit(str(mistake))


if __name__ == "__main__":
    fire.Fire(main)
