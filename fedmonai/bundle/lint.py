# SPDX-License-Identifier: Apache-2.0
"""A static check of a bundle: what its configs could make a machine do, found without evaluating any of them."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver
from monai.bundle.utils import merge_kv

from fedmonai.bundle import lint_files
from fedmonai.bundle.known_ids import config_files, unknown_ids
from fedmonai.bundle.lint_config import config_problems, load_strictly, walk
from fedmonai.bundle.overlay_ids import DATA_IDS, FEDERATION_IDS
from fedmonai.errors import ConfigError

__all__ = ["LintFinding", "LintReport", "lint_bundle"]

SEP = ReferenceResolver.sep
#: overlays in configs/ that are laid over train.json although they are YAML
OVER_TRAIN = {"outside.yaml"}
#: ids that MONAI looks for by name, so that nothing in a config needs to refer to them
ENTRY_IDS = {"imports", "initialize", "run", "finalize", "evaluate", "inference", "train", "validate"}


@dataclass(frozen=True)
class LintFinding:
    """One line: the file inside the bundle, the id in it (empty for the file itself), what is wrong."""

    file: str
    config_id: str
    problem: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.config_id, self.problem) if part)


@dataclass
class LintReport:
    """The findings, and how much was looked at."""

    findings: list[LintFinding] = field(default_factory=list)
    configs: int = 0
    components: int = 0
    expressions: int = 0

    def count(self, config: Mapping[str, Any]) -> None:
        """Add the components and expressions of a config to the totals."""
        values = [value for _, value in walk(config)]
        self.configs += 1
        self.components += sum(isinstance(value, Mapping) and "_target_" in value for value in values)
        self.expressions += sum(isinstance(value, str) and value.startswith("$") for value in values)

    def add(self, file: str, config_id: str, problem: str) -> None:
        """Add a finding once."""
        finding = LintFinding(file, config_id, problem)
        if finding not in self.findings:
            self.findings.append(finding)


def lint_bundle(bundle: str | Path) -> LintReport:
    """Check every file of a bundle statically.

    A bundle config is code: MONAI evaluates its expressions and calls its components. Here nothing is evaluated:
    expressions are parsed and compared with a small grammar, components are looked up by name in packages that are
    installed and allowed. The check narrows what a config can do; it does not replace trust in where it comes from.

    Args:
        bundle: folder of the bundle.

    Returns:
        the findings (none for a bundle that keeps the rules) and counts.

    Raises:
        ConfigError: when ``bundle`` is no bundle folder.
    """
    root = Path(bundle)
    if not (root / "configs").is_dir():
        raise ConfigError(f"'{bundle}' is no bundle: it has no folder 'configs'.")
    report = LintReport()
    for found in lint_files.file_problems(root):
        report.add(*found)
    if lint_files.holds_code(root) and any(Path(entry or ".").resolve() == root.resolve() for entry in sys.path):
        report.add(".", "", "Python would import modules from this folder; run the check from another one")
        return report
    contents = dict(_contents(root, report))
    suspect = set()
    for path, content in contents.items():
        report.count(content)
        for config_id, problem in config_problems(content):
            report.add(_name(root, path), config_id, problem)
            suspect.add(path)
    for path, content in contents.items():
        # the check of ids looks into components, which imports them: not before all of them are known to be allowed
        if not suspect & {path, _base_of(root, path, content)}:
            for config_id, problem in _id_problems(root, path, content, contents):
                report.add(_name(root, path), config_id, problem)
    _lint_others(root, report)
    return report


def _contents(root: Path, report: LintReport) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in config_files(root):
        try:
            yield path, load_strictly(path)
        except ValueError as error:
            report.add(_name(root, path), "", str(error))


def _lint_others(root: Path, report: LintReport) -> None:
    for path in sorted(root.glob("configs/**/*.conf")):
        for config_id, problem in lint_files.logging_problems(path):
            report.add(_name(root, path), config_id, problem)
    for path in lint_files.weight_files(root):
        for problem in lint_files.weights_problems(path):
            report.add(_name(root, path), "", problem)
    path = root / "configs" / "metadata.json"
    if path.is_file():
        try:
            found = list(lint_files.metadata_problems(load_strictly(path)))
        except ValueError as error:
            found = [("", str(error))]
        for config_id, problem in found:
            report.add(_name(root, path), config_id, problem)


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _base_of(root: Path, path: Path, content: Mapping[str, Any]) -> Path | None:
    """The config that a file is laid over; None for a file that stands alone."""
    if "bundle_root" in content:
        return None
    yaml = path.parent.name == "configs" and path.suffix != ".json" and path.name not in OVER_TRAIN
    federated = path.parent.name == "federation" or yaml
    return root / "configs" / ("federated.yaml" if federated else "train.json")


def _id_problems(
    root: Path, path: Path, content: dict[str, Any], contents: Mapping[Path, dict[str, Any]]
) -> Iterator[tuple[str, str]]:
    base = _base_of(root, path, content)
    if base is not None and base not in contents:
        yield "", f"is laid over {base.name}, which is missing or unreadable"
        return
    layers = [content] if base is None else [contents[base], content]
    try:
        merged = _merged(layers)
    except Exception as error:  # MONAI's parser fails in many ways on a broken id
        yield "", f"cannot be laid over its base ({type(error).__name__}: {error})"
        return
    ids = {config_id for config_id, _ in walk(merged)}
    for config_id, value in walk(content):
        if isinstance(value, str) and not config_id.endswith("_desc_"):
            yield from ((config_id, f"refers to '@{ref}', which no config has") for ref in _dangling(value, ids))
    if base is not None:
        known = {config_id for config_id, _ in walk(contents[base])} | ENTRY_IDS | FEDERATION_IDS
        if path.parent.name == "data":  # what stands under an id of data (classes by name, ...) is the data's own
            known |= {config_id for config_id, _ in walk(content) if config_id.split(SEP)[0] in known & DATA_IDS}
        yield from ((unknown, "is unknown: nothing reads it") for unknown in unknown_ids(merged, known))
    yield from _whitelist_problems(path, content)
    yield from _file_problems(root, content, contents)
    yield from _site_problems(root, content, contents)


def _merged(layers: list[dict[str, Any]]) -> dict[str, Any]:
    parser = ConfigParser(config={})
    for layer in layers:
        for key, value in layer.items():
            merge_kv(parser, key, copy.deepcopy(value))
    return dict(parser.get())


def _dangling(value: str, ids: set[str]) -> Iterator[str]:
    if value.startswith(("$", "@")):
        for found in ReferenceResolver.id_matcher.findall(value):
            name = found[1:].replace("#", SEP)
            if name not in ids:
                yield name
    elif value.startswith("%") and not re.search(r"\.(json|ya?ml)", value) and value[1:].replace("#", SEP) not in ids:
        yield value


def _whitelist_problems(path: Path, content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if path.parent.name == "data":
        for key in content:
            if key not in DATA_IDS:
                yield key, "is no id of data; an overlay in configs/data says how data are read, not how to train"


def _file_problems(
    root: Path, content: Mapping[str, Any], contents: Mapping[Path, dict[str, Any]]
) -> Iterator[tuple[str, str]]:
    """What names a config must name one that was checked: of this bundle, and no result of a run."""
    if content.get("bundle_root", ".") != ".":
        yield "bundle_root", f"is {content['bundle_root']!r}; a bundle says '.', whoever runs it elsewhere overrides it"
    for config_id, value in walk(content):
        if config_id.rpartition(SEP)[2] in ("base", "overlay"):
            for file in value if isinstance(value, list) else [value]:
                if root / str(file) not in contents:
                    yield config_id, f"'{file}' is no config file of this bundle"


def _site_problems(
    root: Path, content: Mapping[str, Any], contents: Mapping[Path, dict[str, Any]]
) -> Iterator[tuple[str, str]]:
    """Ids given to sites (``local``, ``sites``) must be ids of the sites' own config, overlays files of the bundle."""
    own = {config_id for config_id, _ in walk(contents.get(root / "configs" / "train.json", {}))}
    for config_id, name, _ in _site_ids(content):
        if name != "overlay" and name not in own:
            yield config_id, "is unknown at a site: its train.json has no such id"


def _site_ids(content: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(id, id at the site, value) of what ``local`` and ``sites`` set, whether nested or written with ``::``."""
    for key, value in content.items():
        section, *rest = key.split(SEP)
        depth = {"local": 0, "sites": 1}.get(section)
        if depth is None:
            continue
        if len(rest) > depth:
            yield key, SEP.join(rest[depth:]), value
            continue
        specs = [(key, value)]
        if len(rest) < depth:
            specs = [(f"{key}{SEP}{name}", spec) for name, spec in (value or {}).items()]
        for prefix, spec in specs:
            yield from ((f"{prefix}{SEP}{name}", name, inner) for name, inner in (spec or {}).items())
