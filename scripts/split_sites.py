# SPDX-License-Identifier: Apache-2.0
"""Cut one dataset into simulated sites; each gets a data list with its own train, val and test subjects.

    python scripts/split_sites.py --dataset_dir data/big --sequence T1 --output sites --by share --sites 3
    python scripts/split_sites.py --dataset_dir data/big --rows list.csv --output sites --by column --column scanner
    python scripts/split_sites.py --dataset_dir data/big --rows list.csv --output sites --by dirichlet --label group

A site then reads dataset_dir: data/big with data_list: sites/site1.json.
All options: python scripts/split_sites.py -- --help
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import fire

from fedmonai.data import simulate_sites
from fedmonai.errors import ConfigError


@functools.wraps(simulate_sites)
def main(*args: Any, **options: Any) -> None:
    try:
        for path in simulate_sites(*args, **options):
            print(path)
    except ConfigError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    fire.Fire(main)
