# SPDX-License-Identifier: Apache-2.0
"""Lint: static check of a bundle for what its configs could make a machine do; none of them is evaluated."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmonai.bundle import lint_files
from fedmonai.bundle.id_table import TABLE_SECTION, IdTable
from fedmonai.bundle.lint_overlays import data_problems, file_problems, site_problems
from fedmonai.errors import ConfigError, first_line
from fedmonai.gate.config import config_problems
from fedmonai.gate.names import Found, NameProblem, Names, names_for
from fedmonai.gate.reading import SEP, TABLE_FILE, config_files, load_strictly, walk
from fedmonai.gate.references import merge_layers, references, unknown_ids
from fedmonai.gate.values import Values

__all__ = ["LintFinding", "LintReport", "lint_bundle"]

#: overlays in configs/ that are laid over train.json although they are YAML
OVER_TRAIN = {"outside.yaml"}
#: folders of overlays that are laid over train.json or over federated.yaml, whatever they set
BASES = ("data", "federation", "network")
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
    """The findings, how much was looked at, and notes on the check itself."""

    findings: list[LintFinding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
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


def lint_bundle(bundle: str | Path, allow: str | Sequence[str] = ()) -> LintReport:
    """Check every file of a bundle statically.

    A bundle config is code: MONAI evaluates its expressions and calls its components. Here nothing is evaluated or
    imported: expressions are parsed and compared with a small grammar, components are looked up by name in a catalogue
    and in the sources of admitted packages. The check narrows what a config can do; it does not replace trust in where
    it comes from.

    Args:
        bundle: folder of the bundle.
        allow: packages of one's own whose public classes and functions the configs may use, such as ``["my_lab"]``.

    Returns:
        the findings (none for a bundle that keeps the rules) and counts.

    Raises:
        ConfigError: when ``bundle`` is no bundle folder, or ``allow`` names no package of one's own.
    """
    root = Path(bundle)
    if not (root / "configs").is_dir():
        raise ConfigError(f"'{bundle}' is no bundle: it has no folder 'configs'.")
    names = names_for(allow)
    report = LintReport(notes=names.catalogue.other_versions())
    for found in lint_files.special_files(root):
        report.add(*found)
    if report.findings:
        return report  # reading on could wait for ever, or read the files of somebody else
    for found in lint_files.file_problems(root):
        report.add(*found)
    if lint_files.holds_code(root) and any(Path(entry or ".").resolve() == root.resolve() for entry in sys.path):
        report.add(".", "", "Python would import modules from this folder; run the check from another one")
        return report
    contents = dict(_contents(root, report))
    table = _table(root, contents, report)
    suspect = set()
    for path, content in contents.items():
        report.count(content)
        for config_id, problem in config_problems(content, names):
            report.add(_name(root, path), config_id, problem)
            suspect.add(path)
    for path in contents:
        # what is wrong by itself would be said again
        if not suspect & {path, *_bases_of(root, path, contents)}:
            _lint_together(root, path, contents, table, names, report)
    _lint_others(root, report)
    return report


def _table(root: Path, contents: Mapping[Path, dict[str, Any]], report: LintReport) -> IdTable:
    """The bundle's table of ids; empty, with a finding, where it is missing or wrong."""
    if not (root / "configs" / TABLE_FILE).is_file():
        report.add(f"configs/{TABLE_FILE}", "", "is missing; it says what each id of the bundle means")
        return IdTable()
    try:
        return IdTable.of_bundle(root, contents)
    except ConfigError as error:
        report.add(f"configs/{TABLE_FILE}", "", str(error))
        return IdTable()


def _lint_together(
    root: Path, path: Path, contents: Mapping[Path, dict[str, Any]], table: IdTable, names: Names, report: LintReport
) -> None:
    try:
        for config_id, problem in _id_problems(root, path, contents, table, names):
            report.add(_name(root, path), config_id, problem)
    except (KeyError, ValueError, IndexError, TypeError, RecursionError) as error:  # as MONAI's parser would fail
        report.add(_name(root, path), "", f"cannot be checked ({type(error).__name__}: {first_line(error, 120)})")


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


def _bases_of(root: Path, path: Path, contents: Mapping[Path, dict[str, Any]]) -> list[Path]:
    """The configs that a file is laid over, in their order; none for a file that stands alone.

    Overlays in a folder with the name of an overlay in ``configs/`` are laid over that one (``outside/tent.yaml`` over
    ``outside.yaml``). In a folder that only this bundle has it is ``federated.yaml`` if the file sets an id that only a
    federation has.
    """
    if "bundle_root" in contents[path]:
        return []
    train, federated = (root / "configs" / name for name in ("train.json", "federated.yaml"))
    if path.parent == root / "configs":
        return [train if path.suffix == ".json" or path.name in OVER_TRAIN else federated]
    if path.parent.name in BASES:
        return [federated if path.parent.name == "federation" else train]
    parent = root / "configs" / f"{path.parent.name}.yaml"
    if parent in contents:
        return [*_bases_of(root, parent, contents), parent]
    own = {config_id.lstrip("+").split(SEP)[0] for config_id in contents[path]}
    return [federated if own & (contents.get(federated, {}).keys() - contents.get(train, {}).keys()) else train]


def _id_problems(
    root: Path, path: Path, contents: Mapping[Path, dict[str, Any]], table: IdTable, names: Names
) -> Iterator[tuple[str, str]]:
    content, bases = contents[path], _bases_of(root, path, contents)
    for base in bases:
        if base not in contents:
            yield "", f"is laid over {base.name}, which is missing or unreadable"
            return
    merged = merge_layers(*(contents[base] for base in bases), content)
    problems = list(config_problems(merged, names))
    yield from problems
    if problems:
        return
    ids = {config_id for config_id, _ in walk(merged)}
    for config_id, value in walk(content):
        if isinstance(value, str) and not config_id.endswith("_desc_"):
            yield from ((config_id, f"refers to '@{ref}', which no config has") for ref in _dangling(value, ids))
    if bases:
        # of the table what an overlay may add: what it declares itself, and what no config that stands alone has
        in_bases = {key for other in contents.values() if "bundle_root" in other for key in other}
        declared = set(content.get(TABLE_SECTION) or {}) | (set(table) - in_bases)
        known = {config_id for base in bases for config_id, _ in walk(contents[base])} | ENTRY_IDS | declared
        known |= _read_by_name(merged, names)
        plain = {key: value for key, value in merged.items() if key != TABLE_SECTION}
        found = unknown_ids(plain, known, lambda target: _argument_names(target, names), table.names(open=True))
        yield from ((unknown, "is unknown: nothing reads it") for unknown in found)
    if table:
        remedy = f"has no entry in configs/{TABLE_FILE}; describe it there, or under '{TABLE_SECTION}' of this file"
        yield from ((key, remedy) for key in content if not _has_entry(key, table))
        yield from data_problems(path, content, table.names(data=True))
    yield from file_problems(root, content, contents)
    own = {config_id for config_id, _ in walk(contents.get(root / "configs" / "train.json", {}))}
    values = Values(merged, names)
    yield from site_problems(content, own, values)
    yield from values.problems()


def _has_entry(key: str, table: IdTable) -> bool:
    plain = key.removeprefix("+")
    return SEP in plain or plain in table or plain in (TABLE_SECTION, "_desc_")


def _argument_names(target: Any, names: Names) -> set[str] | None:
    try:
        found = names.component(target)
    except NameProblem:
        return None  # said at the target
    return None if found.takes_any else set(found.parameters or ())


def _read_by_name(config: Mapping[str, Any], names: Names) -> set[str]:
    """The ids that the component ``federation`` takes by their names, for itself and for the strategy."""
    found = [_component(config.get(name), names) for name in ("federation", "strategy")]
    if found[0] is None or not found[0].reads_ids:
        return set()
    return {name for one in found if one is not None for name in one.parameters or ()}


def _component(section: Any, names: Names) -> Found | None:
    try:
        return names.component(section.get("_target_")) if isinstance(section, Mapping) else None
    except NameProblem:
        return None


def _dangling(value: str, ids: set[str]) -> Iterator[str]:
    yield from (name for name in references(value) if name not in ids)
    if value.startswith("%") and value[1:] not in ids:
        yield value
