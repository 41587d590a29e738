# SPDX-License-Identifier: Apache-2.0
"""Commands on the bundles that come with the package: list them, copy one, run one as a demonstration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from fedmonai.bundle.collection import copy_bundle, shipped_bundle, shipped_bundles, shipped_metadata
from fedmonai.command_line import isolated


def bundles() -> list[str]:
    """List the bundles that come with the package: name, method, task."""
    found = shipped_metadata()
    width = max(map(len, found))
    lines = [f"{name:{width}}  {content['name']}: {content['task']}" for name, content in found.items()]
    return [*lines, f"They lie in {shipped_bundles()}; 'fedmonai copy <bundle> <folder>' makes a copy to work in."]


def copy(bundle: str, folder: str) -> str:
    """Copy a bundle to a new folder, to run it there and to change it.

    Args:
        bundle: its name, such as fl_mr.
        folder: becomes the bundle's folder; it must not exist, or be empty.
    """
    target = copy_bundle(str(bundle), str(folder))
    return f"{target}: a bundle; docs/README.md says how it is run."


def demo(bundle: str = "fl_mr", folder: str = "fedmonai_demo", **ids: Any) -> int:
    """Run a small federation on generated data, of about a minute on one core; the same command continues it.

    Args:
        bundle: its name, such as fl_mr.
        folder: gets a copy of the bundle, <folder>/<bundle>, and the results, <folder>/runs/<bundle>.
        ids: overrides, such as --num_rounds 2.
    """
    shipped_bundle(str(bundle))
    root = Path(str(folder), str(bundle))
    if not (root / "configs").is_dir():
        copy_bundle(str(bundle), root)
    files = [str(root / "configs" / name) for name in ("federated.yaml", "demo.yaml")]
    given = {"bundle_root": str(root), "output_dir": str(Path(str(folder), "runs", str(bundle))), "resume": True, **ids}
    words = [f"--{name}={value if isinstance(value, str) else repr(value)}" for name, value in given.items()]
    command = [sys.executable, *isolated("monai.bundle"), "run", f"--config_file={files}", *words]
    return subprocess.run(command, check=False).returncode  # noqa: S603 (MONAI's own module, words of this user)
