# SPDX-License-Identifier: Apache-2.0
"""From a federation's description of a site to the arguments that build it, in process and deployed alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmonai.errors import ConfigError
from fedmonai.names import as_list

__all__ = ["checked_name", "site_arguments"]


def site_arguments(
    name: str,
    spec: Mapping[str, Any],
    local: Mapping[str, Any],
    base: Sequence[str],
    bundle_root: Path,
    output_dir: Path,
    common: Mapping[str, Any],
) -> dict[str, Any]:
    """Keyword arguments of :class:`~fedmonai.federated.site.SiteAlgo`.

    Args:
        name: the site.
        spec: its own ids of the bundle's ``train.json``, and ``overlay``: config file(s) of the bundle.
        local: the same for all sites; what a site sets itself wins.
        base: config files of every site.
        bundle_root: folder of the bundle.
        output_dir: folder of the run.
        common: further arguments, the same for all sites.

    Raises:
        ConfigError: when a file is not in the bundle or lies outside of its folder, or an id is a component (sites may
            not share one object) or a text that the site would evaluate.
    """
    rest, own = dict(local), dict(spec)
    files = [*base, *as_list(rest.pop("overlay", None)), *as_list(own.pop("overlay", None))]
    ids = {**rest, **own}
    for key, value in ids.items():
        if hasattr(value, "__dict__") and not isinstance(value, type):
            raise ConfigError(
                f"site '{name}': id '{key}' is a component ({type(value).__name__}); sites may not share one "
                "object. Put it in a file and name the file as overlay."
            )
        _refuse_evaluated(name, key, value)
    for file in files:
        path = bundle_root / file
        if not path.is_file():
            raise ConfigError(f"site '{name}': config file '{file}' is not in the bundle folder '{bundle_root}'.")
        if not path.resolve().is_relative_to(bundle_root.resolve()):
            raise ConfigError(
                f"site '{name}': config file '{file}' lies outside of the bundle folder '{bundle_root}', where no "
                "check of the bundle looks; copy it into the folder's configs."
            )
    given: dict[str, Any] = {"bundle_root": str(bundle_root), "site": name}
    given |= {"output_dir": str(output_dir / "sites" / name), "standalone": False, "seed": common["seed"]}
    return {
        **common,
        "bundle_root": str(bundle_root),
        "site": name,
        "config_train_filename": files,
        "train_kwargs": {**given, **ids},
    }


def _refuse_evaluated(name: str, key: str, value: Any) -> None:
    """Refuse what the site's parser would evaluate: the federation's has evaluated all that was written as such.

    What still begins with a sign of MONAI was put together on the way, so that no check of the configs has seen it.
    """
    if isinstance(value, Mapping):
        if any(str(inner).startswith("_") for inner in value):
            raise ConfigError(f"site '{name}': id '{key}' holds a component; put it in a file and name it as overlay.")
        for inner in value.values():
            _refuse_evaluated(name, key, inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _refuse_evaluated(name, key, inner)
    elif isinstance(value, str) and value.startswith(("$", "@", "%")):
        raise ConfigError(
            f"site '{name}': id '{key}' is '{value}', which the site would evaluate; give its value, or put it in a "
            "config file and name the file as overlay."
        )


def checked_name(name: str) -> str:
    """A site's name as text; it becomes a folder.

    Raises:
        ConfigError: when it cannot be one.
    """
    text = str(name)
    if not text or text != Path(text).name or text.startswith("."):
        raise ConfigError(
            f"sites: '{text}' cannot be a site name; it becomes a folder, so use letters, digits, '_', '-', '.'."
        )
    return text
