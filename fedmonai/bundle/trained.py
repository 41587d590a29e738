# SPDX-License-Identifier: Apache-2.0
"""Bundle with trained weights: a copy of the bundle whose configs and metadata say how they were trained."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from importlib import metadata as installed
from pathlib import Path
from typing import Any

from monai.bundle import ReferenceResolver

import fedmonai
from fedmonai.bundle.collection import copy_files
from fedmonai.bundle.id_table import IdTable
from fedmonai.bundle.lint_merged import merged_config
from fedmonai.errors import ConfigError
from fedmonai.federated.plan import SitePlan
from fedmonai.io import parse_strictly, read_strictly, read_weights, save, write_json, write_text

__all__ = [
    "installed_versions",
    "site_config",
    "site_settings",
    "trained_ids",
    "trained_settings",
    "warn_of_other_settings",
    "write_settings",
    "write_trained_bundle",
]

logger = logging.getLogger(__name__)

#: configs whose defaults become the values of the training
CONFIGS = ("train.json", "inference.json")
COMMAND = "python -m monai.bundle run --config_file configs/inference.json --dataset_dir /data/new --output_dir results"


def trained_ids(bundle_root: str | Path) -> list[str]:
    """Ids that trained weights depend on: of a network, of what it is fed with.

    They are those that training and inference have with the same default, without what is the machine's (``machine`` in
    the bundle's table of ids): a bundle that says different things in both, such as the size to which images are
    cropped, means different things.
    """
    train, inference = (_json(Path(bundle_root, "configs", name)) for name in CONFIGS)
    table = IdTable.of_bundle(bundle_root, {})
    common = [name for name in inference if name in train and inference[name] == train[name]]
    return [name for name in common if name in table and not table[name].machine]


def site_config(plan: SitePlan, site: str) -> dict[str, Any]:
    """A site's merged config; nothing is evaluated."""
    given = plan.arguments(site)
    files = [Path(plan.bundle_root, file) for file in given["config_train_filename"]]
    return merged_config(files, given["train_kwargs"])


def site_settings(plan: SitePlan, site: str) -> dict[str, Any]:
    """The values of :func:`trained_ids` at a site, as its merged config has them."""
    config = site_config(plan, site)
    table = IdTable.of_bundle(plan.bundle_root, {})
    stock = _json(Path(plan.bundle_root, "configs", CONFIGS[-1]))
    found = {name: config[name] for name in trained_ids(plan.bundle_root) if name in config}
    # a component that nobody replaced says nothing
    return {name: value for name, value in found.items() if table[name].is_setting or value != stock[name]}


def trained_settings(plan: SitePlan, sites: list[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What weights of several sites were trained with.

    Returns:
        the values on which all of them agree, and the others by id and site.
    """
    by_site = {site: site_settings(plan, site) for site in sites}
    first = by_site[sites[0]]
    agreed = {name: value for name, value in first.items() if all(one.get(name) == value for one in by_site.values())}
    others = {name: {site: one.get(name) for site, one in by_site.items()} for name in first if name not in agreed}
    return agreed, others


def write_trained_bundle(
    source: str | Path, target: str | Path, weights: str | Path, settings: Mapping[str, Any], facts: Mapping[str, Any]
) -> Path:
    """Write a bundle with trained weights; an older one in its place is replaced when the new one is whole.

    ``monai.bundle.load`` gives its network with these weights, and its ``inference.json`` needs no option besides the
    images.

    Args:
        source: the bundle that was trained.
        target: folder of the new one.
        weights: file of the whole network's weights.
        settings: values of the ids that they depend on; they become defaults.
        facts: entries of its ``metadata.json``, over those of the source; mappings in both are joined.

    Raises:
        ConfigError: no such weights, or a folder that cannot be written.
    """
    target = Path(target)
    content = read_weights(weights, "weights")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-") as name:
        new = Path(name, "bundle")
        copy_files(source, new)
        settings = _with_own_files(settings, new)
        save(content, new / "models" / "model.pt")
        write_settings(settings, new / "models" / "model.pt")
        for file in CONFIGS:
            _set_defaults(new / "configs" / file, settings)
        path = new / "configs" / "metadata.json"
        write_json(_joined(_json(path), {**installed_versions(_json(path)), **facts}), path)
        readme = new / "docs" / "README.md"
        write_text(_card(facts) + readme.read_text(encoding="utf-8"), readme)
        if target.exists():
            shutil.rmtree(target)
        new.rename(target)
    return target


def write_settings(settings: Mapping[str, Any], weights: Path) -> None:
    """Write beside weights what they were trained with (``model.txt``, JSON), for :func:`warn_of_other_settings`."""
    write_json(dict(settings), weights.with_suffix(".txt"))


def installed_versions(content: Mapping[str, Any]) -> dict[str, Any]:
    """The versions that a bundle's metadata names, as they are installed here."""
    own = {"fedmonai": fedmonai.__version__}  # also where it is imported from a folder and not installed
    required = {n: own.get(n) or installed.version(n) for n in content.get("required_packages_version", {})}
    core = {f"{name}_version": installed.version(package) for name, package in _CORE.items()}
    return {**core, "required_packages_version": required}


_CORE = {"monai": "monai", "pytorch": "torch", "numpy": "numpy"}


def warn_of_other_settings(config: Mapping[str, Any], resolver: ReferenceResolver) -> None:
    """Say it where weights are used with other values than they were trained with, as far as a file beside them says.

    Shapes of tensors do not show a wrong sampling pattern or normalization, so nothing else would.

    Args:
        config: the live config.
        resolver: of its parser.
    """
    if "ckpt_path" not in config:
        return
    weights = Path(str(resolver.get_resolved_content("ckpt_path")))
    path = weights.with_suffix(".txt")
    if path == weights:
        return
    try:
        known = parse_strictly(path.read_text(encoding="utf-8"), "json") if path.is_file() else {}
        differing = {name: value for name, value in dict(known).items() if name in config and config[name] != value}
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"'{path}' does not say what the weights beside it were trained with; remove it.") from error
    for name, value in differing.items():
        logger.warning(
            "%s is %.100s, but the weights '%s' were trained with %.100s; give that, unless you mean it.",
            name,
            json.dumps(config[name], default=str),
            path.with_suffix(".pt"),
            json.dumps(value),
        )


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_strictly(path)
    return content


def _with_own_files(settings: Mapping[str, Any], bundle: Path) -> dict[str, Any]:
    """The settings with files that they name (a sampling pattern) taken into the bundle."""
    table, found = IdTable.of_bundle(bundle, {}), dict(settings)
    for name, value in settings.items():
        if name in table and table[name].kind == "path" and isinstance(value, str) and not value.startswith("$"):
            if not Path(value).is_file():
                raise ConfigError(f"{name}: '{value}' is no file; the bundle of the trained network needs it.")
            place = bundle / "models" / f"{name}{Path(value).suffix}"
            shutil.copyfile(value, place)
            found[name] = f"$@bundle_root + '/models/{place.name}'"
    return found


def _set_defaults(path: Path, settings: Mapping[str, Any]) -> None:
    content = _json(path)
    content.update({name: value for name, value in settings.items() if name in content})
    if path.name == "inference.json":
        content["_desc_"] = (
            f"Inference with the network of this bundle, which is trained. Run: {COMMAND}   "
            "(any id below is an override)"
        )
    write_text(json.dumps(content, indent=4) + "\n", path)


def _joined(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    both = {**old, **new}
    return {
        key: {**old[key], **value} if isinstance(value, Mapping) and isinstance(old.get(key), Mapping) else value
        for key, value in both.items()
    }


def _card(facts: Mapping[str, Any]) -> str:
    """What a reader of the bundle's page has to know of its weights before anything else."""
    told = facts.get("federated", {})
    lines = [f"- {name.replace('_', ' ')}: {json.dumps(value)}" for name, value in told.items()]
    for site, metrics in facts.get("eval_metrics", {}).items():
        lines.append(f"- test at {site}: " + "; ".join(f"{name} {_shown(found)}" for name, found in metrics.items()))
    head = f"# Trained weights\n\nData: {facts.get('data_source', 'not said')}.\n\n"
    return f"{head}{chr(10).join(lines)}\n\n```\n{COMMAND}\n```\n\nThe page of the bundle follows.\n\n"


def _shown(found: Mapping[str, Any]) -> str:
    interval = f"95 % interval {found['low']:.4g} to {found['high']:.4g}, " if "low" in found else ""
    return f"{found['mean']:.4g} ({interval}n = {found['n']})"
