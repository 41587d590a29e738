# SPDX-License-Identifier: Apache-2.0
"""Commands on bundles as a whole: list and copy those of the package, run one as a demonstration, pack one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from fedmonai.bundle.collection import copy_bundle, shipped_bundle, shipped_bundles, shipped_metadata
from fedmonai.command_line import isolated
from fedmonai.errors import ConfigError


def bundles() -> list[str]:
    """List the bundles that come with the package: name, method, task."""
    found = shipped_metadata()
    width = max(map(len, found))
    lines = [f"{name:{width}}  {content['name']}: {content['task']}" for name, content in found.items()]
    return [*lines, f"They are in {shipped_bundles()}; 'fedmonai copy <bundle> <folder>' makes a copy to work in."]


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


def pack(bundle: str, output: str = "dist", name: str | None = None, hub: bool = False) -> str:
    """Pack a bundle for the MONAI model zoo, or its folder for Hugging Face; nothing is sent anywhere.

    Args:
        bundle: folder of a bundle, or of a run, whose trained bundle is packed.
        output: folder of the archive, or the new folder of the hub.
        name: of the bundle in the zoo; by default that of its folder, or of the method for a run.
        hub: write the folder for Hugging Face with its model card instead of an archive.
    """
    from fedmonai.bundle.pack import pack_bundle, write_hub_folder

    root = Path(str(bundle))
    if not (root / "configs").is_dir() and (root / "bundle" / "configs").is_dir():
        root = root / "bundle"
    if hub:
        return f"folder for the hub: {write_hub_folder(root, str(output))}"
    return f"archive: {pack_bundle(root, str(output), str(name or _name(root)))}"


def _name(bundle: Path) -> str:
    """Name of a bundle by its folder; of a trained one, whose folder is called ``bundle``, by its metadata."""
    folder = bundle.resolve().name
    if folder != "bundle":
        return folder
    path = bundle / "configs" / "metadata.json"
    try:
        return re.sub(r"[^a-z0-9]+", "_", str(json.loads(path.read_text(encoding="utf-8"))["name"]).lower())
    except (OSError, ValueError, LookupError) as error:
        raise ConfigError(f"'{path}' cannot be read; give the folder of a bundle or of a run.") from error
