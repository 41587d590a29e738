# SPDX-License-Identifier: Apache-2.0
"""Write the files that bundles have in common from one source: ``python scripts/build_bundles.py``.

Bundles are committed, complete and edited by their users; here their authors write once what several of them have.
``bundles_source/<bundle>/bundle.yaml`` names a bundle's family and the values of its templates. A bundle gets the files
of ``shared``, of its family and of its own folder in ``bundles_source``; of two with the same path the later one is
taken, which may be a template that changes some blocks of the earlier one. Folders that begin with ``_`` hold parts of
templates. A template is a Jinja template with ``<% block x %>`` and ``<< value >>``. Files of a bundle that have no
source here are written by hand and left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fire
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedmonai.bundle.id_list import id_page

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "bundles_source"
SETTINGS = "bundle.yaml"


def templates(folder: str, source: Path = SOURCE) -> Iterator[str]:
    """Paths of the templates of a folder of the source, relative to that folder."""
    for path in sorted((source / folder).rglob("*")):
        parts = path.relative_to(source / folder).parts
        if path.is_file() and parts != (SETTINGS,) and not any(part.startswith("_") for part in parts):
            yield "/".join(parts)


def rendered(bundle: str, source: Path = SOURCE) -> dict[str, str]:
    """The files of a bundle that have a source: text by path in the bundle."""
    environment = Environment(  # noqa: S701 (configs and licenses, no HTML)
        loader=FileSystemLoader(source),
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    settings: dict[str, Any] = yaml.safe_load((source / bundle / SETTINGS).read_text(encoding="utf-8"))
    folders = ["shared", *([settings["family"]] if "family" in settings else []), bundle]
    found = {path: folder for folder in folders for path in templates(folder, source)}
    absent = settings.get("without", [])
    values = {"bundle": bundle, **settings}
    return {
        path: environment.get_template(f"{folder}/{path}").render(values)
        for path, folder in found.items()
        if path not in absent
    }


def build(output: str | Path = ROOT / "bundles", source: str | Path = SOURCE) -> None:
    """Write the files of all bundles that have a source, and each bundle's page of ids.

    Args:
        output: folder of the bundles.
        source: folder of their sources.
    """
    for settings in sorted(Path(source).glob(f"*/{SETTINGS}")):
        for path, text in rendered(settings.parent.name, Path(source)).items():
            target = Path(output, settings.parent.name, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        bundle = Path(output, settings.parent.name)
        if (bundle / "configs" / "train.json").is_file():
            (bundle / "docs" / "ids.md").write_text(id_page(bundle), encoding="utf-8")


if __name__ == "__main__":
    fire.Fire(build)
