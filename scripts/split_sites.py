# SPDX-License-Identifier: Apache-2.0
"""Cut one dataset into simulated sites; each gets a data list with its own train, val and test subjects.

    python scripts/split_sites.py --dataset_dir data/big --sequence T1 --output sites --by share --sites 3
    python scripts/split_sites.py --dataset_dir data/big --rows list.csv --output sites --by column --column scanner
    python scripts/split_sites.py --dataset_dir data/big --rows list.csv --output sites --by dirichlet --label group

A site then reads dataset_dir: data/big with data_list: sites/site1.json.
All options: python scripts/split_sites.py -- --help
"""

from __future__ import annotations

from pathlib import Path

from fedmonai.command_line import run_command
from fedmonai.data.partition import simulate_sites


def report(paths: list[Path]) -> None:
    print(*paths, sep="\n")


if __name__ == "__main__":
    run_command(simulate_sites, report)
