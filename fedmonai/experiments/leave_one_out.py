# SPDX-License-Identifier: Apache-2.0
"""Leave one out: for every site a federation without it, then the adaptation to it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from fedmonai.bundle.id_effects import read_ids
from fedmonai.bundle.ids import apply_overrides
from fedmonai.bundle.layers import read_layers
from fedmonai.errors import ConfigError
from fedmonai.federated.plan import overlay_files
from fedmonai.io import read_strictly, write_text
from fedmonai.names import as_list

__all__ = ["leave_one_out", "run_plan"]


SETTINGS = "leave_one_out.json"
OUTSIDE_CONFIG = "configs/outside.yaml"


def leave_one_out(
    output_dir: str,
    bundle_root: str,
    config_file: str | Sequence[str] = "configs/federated.yaml",
    outside_sites: Mapping[str, Any] | Sequence[str] | str | None = None,
    outside: Mapping[str, Any] | None = None,
    adaptations: Mapping[str, Any] | None = None,
    **ids: Any,
) -> dict[str, list[Path]]:
    """For every site: a federation of all the others, then ``configs/outside.yaml`` at this one.

    The federation is built without the outside site: it is neither trained, validated nor tested there. What is
    finished is not done again, and an interrupted federation goes on after its last round: the same command resumes.

    Args:
        output_dir: ``<output_dir>/<site>/federation`` and ``<output_dir>/<site>/<adaptation>`` are written.
        bundle_root: the bundle.
        config_file: the federation's config file(s), relative to the bundle.
        outside_sites: the sites that are left out, one at a time; None = all of the federation. A mapping also takes
            new sites that are like one of the federation: ``{"HK-new": {"like": "HK", "outside_split": "test"}}`` has
            HK's ids and those given, and its federation (``<output_dir>/federation``) leaves nobody out.
        outside: further ids of the outside step, such as ``passes``.
        adaptations: what is done there, ``{name: {"overlays": [...], "ids": {...}}}``: overlays over
            ``outside.yaml`` and ids; one of these without either, named ``outside``, by default.
        ids: further ids of the federation, such as ``num_rounds`` or ``local::lr``.

    Returns:
        the folders of the adaptations, by site.

    Raises:
        ConfigError: an unknown site, fewer than three sites, or a folder that holds other settings.
    """
    root = Path(bundle_root).resolve()
    files = [str(root / name) for name in as_list(config_file)]
    parser = read_layers(files)
    apply_overrides(parser, {"bundle_root": str(root), **ids})
    specs: dict[str, dict[str, Any]] = {name: spec or {} for name, spec in parser.get_parsed_content("sites").items()}
    chosen = _outside_sites(outside_sites, specs)
    ways = {name: dict(way or {}) for name, way in (adaptations or {"outside": {}}).items()}
    folder = Path(output_dir).resolve()
    settings = {"config_file": [str(Path(file).relative_to(root)) for file in files], "outside": dict(outside or {})}
    _check_settings(folder, {**settings, "ways": ways, **ids})
    common = {"local": dict(parser.get_parsed_content("local") or {}), "seed": parser.get_parsed_content("seed")}
    results: dict[str, list[Path]] = {}
    for number, (site, own_ids) in enumerate(chosen.items(), start=1):
        like = own_ids.get("like")
        run_dir = folder / "federation" if like else folder / site / "federation"
        results[site] = [folder / site / name for name in ways]
        missing = [name for name in ways if not _is_adapted(folder / site / name)]
        if not missing:
            print(f"[{number}/{len(chosen)}] {site}: done before", flush=True)
            continue
        inside = {name: spec for name, spec in specs.items() if name != site}
        print(f"[{number}/{len(chosen)}] {site}: training {', '.join(inside)}", flush=True)
        own = {"bundle_root": str(root), "output_dir": str(run_dir), "sites": inside, "resume": True}
        _run(files, {**{key: value for key, value in ids.items() if re.split("::|#", key)[0] != "sites"}, **own})
        spec = specs[like or site]
        local = {"folder": like or site, **common["local"], **spec}
        local.pop("overlay", None)
        given = {**{key: value for key, value in own_ids.items() if key != "like"}, **(outside or {})}
        overlays = [file for one in (common["local"], spec) for file in overlay_files(one.get("overlay"))]
        for name in missing:
            print(f"[{number}/{len(chosen)}] {site}: adapting ({name})", flush=True)
            more = as_list(ways[name].get("overlays"))
            layers = [str(root / file) for file in ("configs/train.json", *overlays, OUTSIDE_CONFIG, *more)]
            own = {
                "bundle_root": str(root),
                "run_dir": str(run_dir),
                "output_dir": str(folder / site / name),
                "site": site,
            }
            kept = _read_there(layers, local)
            _run(layers, {"seed": common["seed"], **kept, **given, **(ways[name].get("ids") or {}), **own})
    return results


def _outside_sites(
    given: Mapping[str, Any] | Sequence[str] | str | None, specs: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The outside sites with ids of their own; each is one of the federation or like one."""
    if len(specs) < 3:
        raise ConfigError(f"sites: {len(specs)} given; leaving one out takes at least 3, two of which train.")
    if not isinstance(given, Mapping):
        given = dict.fromkeys(sorted(specs) if given is None else as_list(given))
    chosen = {name: dict(own or {}) for name, own in given.items()}
    for name, own in chosen.items():
        if own.get("like", name) not in specs:
            raise ConfigError(
                f"outside_sites: '{own.get('like', name)}' is not in the federation ({', '.join(sorted(specs))})."
            )
        if "like" in own and name in specs:
            raise ConfigError(f"outside_sites: '{name}' is in the federation; name a site that is like it otherwise.")
    return chosen


def _read_there(layers: list[str], local: Mapping[str, Any]) -> dict[str, Any]:
    """The ids of the federation's sites that the outside step reads, too; how sites train does not concern it."""
    parser = ConfigParser()
    parser.read_config(layers)
    read = read_ids(parser.get())
    return {key: value for key, value in local.items() if key.split("::")[0] in read or "::" in key}


def _is_adapted(folder: Path) -> bool:
    return (folder / "adapted.pt").is_file() and (folder / "adaptation.json").is_file()


def _run(files: list[str], ids: Mapping[str, Any]) -> None:
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False)
    apply_overrides(workflow.parser, ids)
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of this folder, or compare with those of the command that began it."""
    path = folder / SETTINGS
    text = json.dumps(settings, indent=1, sort_keys=True, default=str) + "\n"
    if not path.is_file():
        write_text(text, path)
    elif path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"output_dir: {folder} was begun with other settings (see {SETTINGS}); repeat those or choose another one."
        )


PLAN_KEYS = ("about", "seeds", "bundle", "overlays", "ids", "outside_sites", "outside", "adaptations")


def run_plan(plan: str | Path, output_dir: str, bundles: str) -> tuple[str, dict[int, dict[str, list[Path]]]]:
    """Run or continue :func:`leave_one_out` for every seed of a plan.

    Args:
        plan: YAML file with ``bundle``, ``overlays`` of its ``federated.yaml``, ``seeds``, ``ids``, and the arguments
            ``outside_sites``, ``outside`` and ``adaptations`` of :func:`leave_one_out`; ``about`` says what it is.
        output_dir: ``<output_dir>/seed_<seed>`` are written.
        bundles: folder of the bundles.

    Returns:
        ``about``, and the folders of the adaptations by seed and site.

    Raises:
        ConfigError: an unknown key, and what :func:`leave_one_out` raises.
    """
    try:
        content = read_strictly(Path(plan))
    except ValueError as error:
        raise ConfigError(f"plan '{plan}': {error}.") from error
    unknown = [key for key in content if key not in PLAN_KEYS] if isinstance(content, Mapping) else ["."]
    if unknown or "bundle" not in content:
        raise ConfigError(f"plan '{plan}' has {unknown or 'no bundle'}; it takes {', '.join(PLAN_KEYS)}.")
    given = {key: content[key] for key in ("outside_sites", "outside", "adaptations") if key in content}
    given["config_file"] = ["configs/federated.yaml", *content.get("overlays", [])]
    root = str(Path(bundles) / content["bundle"])
    results = {}
    for seed in content.get("seeds", [0]):
        folder = str(Path(output_dir) / f"seed_{seed}")
        print(f"seed {seed}: {folder}", flush=True)
        results[int(seed)] = leave_one_out(folder, root, **given, **{**content.get("ids", {}), "seed": seed})
    return " ".join(str(content.get("about", "")).split()), results
