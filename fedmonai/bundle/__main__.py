# SPDX-License-Identifier: Apache-2.0
"""Command line: ``python -m fedmonai.bundle check --site B``."""

from __future__ import annotations

import logging
import sys
from typing import Any

import fire

from fedmonai.bundle.site_check import check_site, format_findings


def check(
    site: str, bundle: str = ".", config_file: str | list[str] | tuple[str, ...] = "configs/federated.yaml", **ids: Any
) -> None:
    """Check one site before it joins; exit code 1 if it cannot take part.

    Args:
        site: name of the site in the federation's config.
        bundle: folder of the bundle.
        config_file: federation config, or a list of it and its overlays, relative to the bundle.
        ids: overrides, as for ``python -m monai.bundle run``: ``--sites::B::dataset_dir /data/B``.
    """
    logging.disable(logging.WARNING)
    files = [config_file] if isinstance(config_file, str) else list(config_file)
    findings = check_site(bundle, str(site), files, **ids)
    print(format_findings(str(site), findings))
    sys.exit(0 if all(f.good for f in findings) else 1)


if __name__ == "__main__":
    fire.Fire({"check": check})
