# SPDX-License-Identifier: Apache-2.0
"""Archive of a bundle for the MONAI model zoo, and its folder for a model hub."""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path

import yaml

from fedmonai.bundle.digest import bundle_files
from fedmonai.bundle.lint import lint_bundle
from fedmonai.errors import ConfigError
from fedmonai.io import atomic_path, write_text

__all__ = ["pack_bundle", "write_hub_folder"]

#: what belongs to a bundle; data and results that lie beside it do not
PARTS = ("LICENSE", "configs", "docs", "models", "large_files.yml")
#: time of every entry, so that equal bundles are equal archives
_TIME = (1980, 1, 1, 0, 0, 0)


def pack_bundle(bundle: str | Path, output: str | Path, name: str) -> Path:
    """Write ``<output>/<name>_v<version>.zip`` with the folder ``<name>``, as the model zoo keeps bundles.

    Equal bundles give equal archives. A bundle in which the lint finds something is not packed.

    Args:
        bundle: its folder, with weights or without.
        output: folder of the archive.
        name: of the bundle in the zoo, such as ``fl_mr``.

    Raises:
        ConfigError: on a finding, or when the archive cannot be written.
    """
    root, files = _checked(bundle)
    metadata = json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))
    path = Path(output, f"{name}_v{metadata['version']}.zip")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            entry = zipfile.ZipInfo(f"{name}/{file}", _TIME)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, (root / file).read_bytes())
    return path


def write_hub_folder(bundle: str | Path, folder: str | Path) -> Path:
    """Write a bundle's files to a folder for Hugging Face, with a model card as ``README.md``.

    Args:
        bundle: its folder.
        folder: a new one.

    Raises:
        ConfigError: on a finding of the lint, or when the folder holds something.
    """
    root, files = _checked(bundle)
    target = Path(folder)
    if target.exists():
        raise ConfigError(f"'{target}' is there already; name a new folder.")
    metadata = json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))
    head = {
        "license": str(metadata.get("license", "other")).lower(),
        "library_name": "monai",
        "tags": ["monai", "medical", "federated-learning", "fedmonai"],
    }
    parts = [metadata["description"], f"Data: {metadata['data_source']}.", f"Intended use: {metadata['intended_use']}"]
    page = (root / "docs" / "README.md").read_text(encoding="utf-8")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-") as partial:
        new = Path(partial, "hub")
        for file in files:
            (new / file).parent.mkdir(parents=True, exist_ok=True)
            (new / file).write_bytes((root / file).read_bytes())
        text = "\n\n".join([f"---\n{yaml.safe_dump(head, sort_keys=False)}---", *parts, page])
        write_text(text, new / "README.md")
        new.rename(target)
    return target


def _checked(bundle: str | Path) -> tuple[Path, list[str]]:
    report = lint_bundle(bundle)
    if report.findings:
        raise ConfigError(f"'{bundle}' is not packed: {report.findings[0]} ({len(report.findings)} findings).")
    return Path(bundle), [name for _, name in bundle_files(bundle, PARTS)]
