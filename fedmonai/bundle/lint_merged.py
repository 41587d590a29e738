# SPDX-License-Identifier: Apache-2.0
"""Gate of a whole config: all files and overrides merged by MONAI itself, judged before anything of it is built."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from fedmonai.bundle.ids import apply_overrides
from fedmonai.bundle.layers import read_layers
from fedmonai.command_line import isolated
from fedmonai.errors import ConfigError, unwrapped
from fedmonai.federated.plan import SitePlan
from fedmonai.gate.config import merged_problems
from fedmonai.gate.names import names_for
from fedmonai.gate.reading import config_files
from fedmonai.gate.references import SITE_SECTIONS

__all__ = ["SiteGate", "merged_config", "refuse_bundle", "refuse_merged", "run_gated"]


def merged_config(files: Sequence[str | Path], ids: Mapping[str, Any]) -> dict[str, Any]:
    """Config files and overrides as MONAI's workflow merges them; nothing is evaluated."""
    parser = read_layers(files)
    apply_overrides(parser, ids)
    return dict(parser.get())


def refuse_merged(
    config: Mapping[str, Any],
    bundle_root: str | Path,
    output_dir: str | Path,
    decided: Collection[str] = (),
    allow: Sequence[str] = (),
    whose: str = "the job",
) -> None:
    """Refuse a merged config in which the gate finds something.

    Args:
        config: as it would be built, with this machine's folders in it.
        bundle_root: the machine's folder of the bundle.
        output_dir: the folder in which alone is written.
        decided: further ids of folders and files that the machine decides, which are its own business; in their places
            stands what the bundle says.
        allow: packages that the machine admits besides what the project does.
        whose: config it is, for the message.

    Raises:
        ConfigError: with the first finding.
    """
    roots = {"bundle_root": str(bundle_root), "output_dir": str(output_dir)}
    plain = {key: _as_written(value, roots) for key, value in config.items() if key != "_meta_"}
    plain |= {"bundle_root": "."}
    # what a federation says to its sites is judged at each site, with what that decides; what is evaluated here, here
    plain |= {name: _evaluated(plain[name]) for name in SITE_SECTIONS if name in plain}
    plain.pop("output_dir", None)
    found = list(merged_problems(plain, names_for(allow), {"output_dir", *decided}))
    if found:
        config_id, problem = found[0]
        more = f" ({len(found)} findings)" if len(found) > 1 else ""
        raise ConfigError(f"{whose} is refused: {config_id}: {problem}{more}.")


def _as_written(value: Any, roots: Mapping[str, str]) -> Any:
    """A value in which folders of the machine are references, as a bundle would write them."""
    if isinstance(value, Mapping):
        return {key: _as_written(inner, roots) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_written(inner, roots) for inner in value]
    if isinstance(value, os.PathLike):
        value = str(value)
    if isinstance(value, str):
        # the state of a site may hold its bundle: the longer folder first
        for name, folder in sorted(roots.items(), key=lambda item: -len(item[1])):
            if value == folder:
                return f"@{name}"
            if value.startswith(f"{folder}/") and "'" not in value:
                return f"$@{name} + '{value[len(folder) :]}'"
    return value


def _evaluated(value: Any) -> Any:
    """The parts of a value that a parser evaluates."""
    if isinstance(value, Mapping):
        found = {f"{number}": _evaluated(inner) for number, inner in enumerate(value.values())}
        return dict(value) if "_target_" in value else found
    if isinstance(value, list):
        return list(map(_evaluated, value))
    return value if isinstance(value, str) and value.startswith(("$", "@", "%")) else None


def _names_a_file(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_names_a_file, value))
    return isinstance(value, (str, os.PathLike)) and any(sign in str(value) for sign in ("/", "\\", "~"))


@dataclass(frozen=True)
class SiteGate:
    """What a deployed site asks of its own merged config, whenever it is built.

    Args:
        decided: ids that the site decides, with their values.
        allow: packages that it admits besides what the project does.
    """

    decided: Mapping[str, Any] = field(default_factory=dict)
    allow: Sequence[str] = ()

    def __call__(self, site: str, bundle_root: str, files: Collection[str], ids: Mapping[str, Any]) -> None:
        """Refuse a site's config.

        Raises:
            ConfigError: with the first finding of the gate.
        """
        own = {name for name, value in self.decided.items() if _names_a_file(value)}
        plain = {name: value for name, value in ids.items() if name not in own}
        config = merged_config([Path(bundle_root, file) for file in files], plain)
        # a site writes in a folder of its own below its state, which is all its own
        state = Path(ids["output_dir"]).parents[1]
        refuse_merged(config, bundle_root, state, own, self.allow, f"the config of site '{site}'")


def refuse_bundle(root: Path, paths: Sequence[Path], ids: Mapping[str, Any], allow: Sequence[str] = ()) -> None:
    """Refuse a bundle's config with overrides of one's own, and those of the sites of its federation.

    Args:
        root: folder of the bundle, in which no lint finds anything.
        paths: the config and its overlays.
        ids: overrides; folders and files in them are this machine's own.
        allow: packages that are admitted besides what the project does.

    Raises:
        ConfigError: with the first finding.
    """
    own = {name for name, value in ids.items() if _names_a_file(value)}
    given = {name: value for name, value in ids.items() if name not in own}
    output = Path(ids.get("output_dir", root / "runs" / "federated"))
    refuse_merged(merged_config(paths, given), root, output, own, allow, "the bundle")
    plan, as_it_is = (_plan_of_sites(merged_config(paths, more), root, output) for more in (ids, {}))
    if plan is None:
        return
    for name in plan.names:
        before = {} if as_it_is is None else {**as_it_is.local, **(as_it_is.sites.get(name) or {})}
        now = {**plan.local, **(plan.sites[name] or {})}
        decided = {key: value for key, value in now.items() if key not in before or before[key] != value}
        replace(plan, gate=SiteGate(decided, allow)).arguments(name)


def _plan_of_sites(config: Mapping[str, Any], root: Path, output: Path) -> SitePlan | None:
    """What a config says to the sites of its federation, of which references and written values are evaluated alone."""
    if not isinstance(config.get("sites"), Mapping):
        return None
    parser = ConfigParser({**config, "bundle_root": str(root), "output_dir": str(output)})
    with unwrapped():
        parts = {name: parser.get_parsed_content(name) for name in ("sites", "local", "base") if config.get(name)}
    return SitePlan(str(root), output_dir=output, **parts)


def run_gated(bundle: str, files: Sequence[str], ids: Mapping[str, Any], allow: Sequence[str] = ()) -> int:
    """Judge a bundle's config with overrides of one's own, then run it in a process of its own; return its exit code.

    Raises:
        ConfigError: on a finding, or a file that is no config of the bundle.
    """
    root = Path(bundle).resolve()
    known = {path.resolve() for path in config_files(root)}
    paths = [root / file for file in files]
    for file, path in zip(files, paths, strict=True):
        if path.resolve() not in known:
            raise ConfigError(f"config file '{file}' is not one of the configs of the bundle '{bundle}'.")
    refuse_bundle(root, paths, ids, allow)
    # the folder of the bundle is fixed here; an override could name one that nobody has checked
    overrides = {**ids, "bundle_root": str(root)}
    words = [f"--{name}={value if isinstance(value, str) else repr(value)}" for name, value in overrides.items()]
    command = [
        sys.executable,
        *isolated("monai.bundle"),
        "run",
        f"--config_file={[str(path) for path in paths]}",
        *words,
    ]
    return subprocess.run(command, check=False).returncode  # noqa: S603 (MONAI's own module, words of this user)
