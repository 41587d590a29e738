# SPDX-License-Identifier: Apache-2.0
"""Job of a deployed federation: the bundle's own configs, their order, its overrides."""

from __future__ import annotations

import inspect
import json
import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from monai.bundle import ConfigWorkflow

from fedmonai.bundle.digest import TRAVELLING, bundle_digest
from fedmonai.bundle.lint import lint_bundle
from fedmonai.errors import ConfigError, first_line
from fedmonai.federated.messages import JOB_FORMAT, check_format
from fedmonai.gate.policy import load_policy
from fedmonai.gate.reading import SEP, config_files
from fedmonai.io import parse_strictly, read_strictly
from fedmonai.names import as_list, shown

__all__ = [
    "MACHINE_IDS",
    "WORKFLOW_ARGUMENTS",
    "Deployment",
    "describe",
    "named_files",
    "normalized",
    "packed",
    "refuse_other_files",
    "stage",
    "unpack_files",
    "unpacked_bundle",
]


#: ids that every machine decides for itself
MACHINE_IDS = ("bundle_root", "output_dir", "standalone")
#: sections through which a job could undo what a machine decides: how the federation is built, the check of ids
_MACHINE_SECTIONS = ("federation", "check", "record", "report", "initialize", "run", "finalize")
#: ids that name config files
_FILES = ("base", "overlay")
#: arguments of MONAI's workflow; as an id of a site they would reach it and name files, or entries to run
WORKFLOW_ARGUMENTS = frozenset(inspect.signature(ConfigWorkflow.__init__).parameters) - {"self", "override"}

_PLAIN = (
    "; a job takes plain values only, because its overrides are not linted. Put it in a config file of the bundle and "
    "name that file in --federation."
)
_MACHINE = ", which every machine decides for itself; leave it out of the job."


def normalized(key: Any) -> str:
    """An id with ``::`` between its parts, as MONAI reads it."""
    return str(key).replace("#", SEP)


def id_problems(ids: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Ids that a job may not override, each with the reason and the remedy."""
    for key, value in _walk(ids, ""):
        problem = _problem(key, key.split(SEP), value)
        if problem:
            yield key, problem


def file_ids(ids: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The config files that overrides name, each with its id."""
    for key, value in _walk(ids, ""):
        if isinstance(value, str) and set(key.split(SEP)[-2:]) & set(_FILES):  # by itself, or in a list or by a name
            yield key, value


def _walk(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if key:
        yield key, value
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for name, inner in items:
        yield from _walk(inner, f"{key}{SEP}{normalized(name)}" if key else normalized(name) or SEP)


def _problem(key: str, parts: list[str], value: Any) -> str:
    last = parts[-1]
    if any(part != part.strip() or not part for part in parts):  # MONAI strips blanks
        return "no id; give the names of its sections with '::' between them."
    if any(part.startswith("_") for part in parts):
        return f"a component{_PLAIN}"
    if last in MACHINE_IDS or _within(key, _MACHINE_SECTIONS):
        return f"a setting{_MACHINE}"
    if _site_id(parts) in WORKFLOW_ARGUMENTS:
        return "an argument of MONAI's workflow and no id of the bundle; leave it out of the job."
    inside = len(parts) > 1 and parts[-2] in _FILES
    if inside or last in _FILES:
        kinds = (str, type(None)) if inside else (str, type(None), list, tuple)
        if not isinstance(value, kinds) and not (last == "overlay" and isinstance(value, Mapping)):
            return "no config file; give one of the bundle, a list of them, or files by names."
    if re.fullmatch(load_policy().fetching_arguments, last) and value is not None and value is not False:
        return f"an argument that can load code or data from elsewhere{_PLAIN}"
    if (key in ("local", "sites") or re.fullmatch("sites::[^:]+", key)) and not isinstance(value, Mapping):
        return "" if value is None and key.startswith("sites::") else f"'{value}'; give ids with their values."
    return _not_plain(value)


def _not_plain(value: Any) -> str:
    if isinstance(value, str) and value.startswith(("$", "@", "%")):
        return f"'{value}', an expression or a reference{_PLAIN}"
    if not isinstance(value, (str, int, float, bool, type(None), Mapping, list, tuple)):
        return f"a {type(value).__name__}{_PLAIN}"
    return ""


def _site_id(parts: list[str]) -> str:
    """The first part of an id of the sites' own config; empty for one of the federation's."""
    depth = {"local": 1, "sites": 2}.get(parts[0], len(parts))
    return parts[depth] if len(parts) > depth else ""


def _within(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}{SEP}") for section in sections)


DESCRIPTION = "fedmonai.json"
BUNDLE = "bundle"


@dataclass(frozen=True)
class Deployment:
    """Description of a federation in a job.

    Args:
        run: name of the run; server and sites keep its state in a folder of this name, so a job that is submitted again
            under the same name finds it.
        files: the federation's config and its overlays, relative to the bundle.
        ids: overrides, plain values only.
        digest: of what travels of the bundle; a site that has its own copy of the bundle compares it.
        isolate: let every site train in a process of its own, which is started again when it dies.
        reply_timeout: seconds that the server waits for a reply; 0 for no limit.
    """

    run: str
    files: tuple[str, ...]
    ids: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    isolate: bool = False
    reply_timeout: float = 0.0

    def __post_init__(self) -> None:
        self._check_kinds()
        if (
            not 0 < len(self.run) <= 100
            or self.run != Path(self.run).name
            or self.run.startswith(".")
            or (not self.run.isprintable())
        ):
            raise ConfigError(f"{shown(self.run)} cannot be the name of a run; it becomes a folder. Give --name.")
        for file in self.files:
            if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
                raise ConfigError(f"config file '{file}' lies outside of the bundle; a job takes files of the bundle.")
        for key, problem in id_problems(self.ids):
            raise ConfigError(f"override '{key}' is {problem}")

    def _check_kinds(self) -> None:
        timeout: Any = self.reply_timeout
        wrong = [name for name in ("run", "digest") if not isinstance(getattr(self, name), str)]
        if not all(isinstance(file, str) for file in self.files):
            wrong.append("files")
        if not isinstance(self.ids, Mapping) or not all(isinstance(key, str) for key in self.ids):
            wrong.append("ids")
        if not isinstance(self.isolate, bool):
            wrong.append("isolate")
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 <= timeout < math.inf:
            wrong.append("reply_timeout")
        if wrong:
            raise ConfigError(
                f"{wrong[0]} of a job is '{str(getattr(self, wrong[0]))[:100]}'; give run and digest as text, files as "
                "a list, ids with values, isolate as a switch, reply_timeout in seconds, 0 or more."
            )

    @classmethod
    def read(cls, folder: str | Path) -> Deployment:
        """Read what :func:`stage` has written.

        Raises:
            ConfigError: when it cannot be read, or does not describe a job.
        """
        path = Path(folder, DESCRIPTION)
        try:
            content = read_strictly(path)
        except ValueError as error:
            raise ConfigError(f"the job's {DESCRIPTION} {error}.") from error
        if isinstance(content, dict):
            check_format(f"the job's {DESCRIPTION}", content, JOB_FORMAT, "Make the job again with the sites' version.")
            del content["format"]
        known = set(cls.__dataclass_fields__)
        if not isinstance(content, dict) or not {"run", "files"} <= set(content) <= known:
            raise ConfigError(f"the job's {DESCRIPTION} does not describe a job: it sets {', '.join(sorted(known))}.")
        if not isinstance(content["files"], list):
            raise ConfigError(f"the job's {DESCRIPTION}: files is '{content['files']}'; give a list of config files.")
        return cls(**{**content, "files": tuple(content["files"])})


def describe(
    bundle: str | Path, federation: str | Sequence[str] = (), run: str | None = None, **options: Any
) -> Deployment:
    """Describe a federation for a job.

    Args:
        bundle: folder of the bundle.
        federation: overlay(s): paths inside the bundle, or names of files in ``configs/federation`` or ``configs``.
        run: name of the run; the name of the bundle's folder by default.
        options: further fields of :class:`Deployment`.

    Raises:
        ConfigError: on files that are not there, or overrides that are no plain values.
    """
    root = Path(bundle).resolve()
    files = ("configs/federated.yaml", *overlay_files(root, federation))
    for file in files:
        if not (root / file).is_file():
            raise ConfigError(f"config file '{file}' is not in the bundle folder '{root}'.")
    deployment = Deployment(run=run or root.name, files=files, digest=bundle_digest(root, TRAVELLING), **options)
    refuse_other_files(root, named_files(deployment))
    return deployment


def overlay_files(bundle: Path, names: str | Sequence[str]) -> list[str]:
    """Paths of overlays inside the bundle, from paths or bare names."""
    found = []
    for name in as_list(names):
        candidates = [str(name), f"configs/federation/{name}.yaml", f"configs/{name}.yaml"]
        existing = [c for c in candidates if (bundle / c).is_file()]
        if not existing:
            there = sorted(p.stem for p in (bundle / "configs" / "federation").glob("*.yaml"))
            raise ConfigError(f"federation '{name}' is no file of '{bundle}'; choose one of {', '.join(there)}.")
        found.append(existing[0])
    return found


def stage(deployment: Deployment, bundle: str | Path, folder: str | Path) -> None:
    """Write the description and a copy of the bundle's configs into a folder that travels with the job."""
    _copy_parts(Path(bundle), Path(folder, BUNDLE))
    content = {"format": JOB_FORMAT, **asdict(deployment)}
    Path(folder, DESCRIPTION).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def packed(folder: str | Path) -> str:
    """All files of a staged job as one JSON text, for runtimes that carry only some kinds of files."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return json.dumps({path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in files})


def unpack_files(text: str, folder: str | Path) -> None:
    """Write what :func:`packed` has read.

    Raises:
        ConfigError: when it is something else, or holds a name that leads out of ``folder``.
    """
    try:
        files = parse_strictly(text, "json")
    except ValueError as error:
        raise ConfigError(f"the job's files: {error}.") from error
    if not isinstance(files, dict) or not all(name and isinstance(content, str) for name, content in files.items()):
        raise ConfigError("the job's files cannot be read: they are no texts by name.")
    for name, content in files.items():
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts:
            raise ConfigError(f"the job holds a file '{name}', which lies outside of its folder.")
        target = Path(folder, *parts.parts)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content, encoding="utf-8")
        except (OSError, ValueError) as error:  # a name or a text that no file can have
            raise ConfigError(f"the job's file {shown(name)} cannot be written ({first_line(error)}).") from error


def unpacked_bundle(
    folder: str | Path, deployment: Deployment, own: str | None, target: str | Path, allow: Sequence[str] = ()
) -> Path:
    """The bundle to use: the machine's own copy if it has one, else the one that came with the job, after a lint.

    Args:
        folder: where the job's files are.
        deployment: the job's description.
        own: folder of the machine's own copy.
        target: folder for the job's copy; what a runtime put beside its files (signatures) stays behind.
        allow: packages that the machine admits besides what the project does.

    Raises:
        ConfigError: when the own copy differs from the job's, or the job's breaks a rule of
            :func:`fedmonai.bundle.lint.lint_bundle`.
    """
    if own is not None:
        if not Path(own, "configs").is_dir():
            raise ConfigError(f"bundle '{own}' of this site's fedmonai.yaml is no bundle: it has no folder 'configs'.")
        if bundle_digest(own, TRAVELLING) != deployment.digest:
            raise ConfigError(
                f"the bundle '{own}' of this site differs from the one that the job was made from; "
                "install the same version at every site."
            )
        return Path(own)
    for part in TRAVELLING:
        shutil.rmtree(Path(target, part), ignore_errors=True)
    _copy_parts(Path(folder, BUNDLE), Path(target))
    findings = lint_bundle(target, allow).findings
    if findings:
        raise ConfigError(f"the job's bundle is refused: {findings[0]} ({len(findings)} findings of the lint).")
    if bundle_digest(target, TRAVELLING) != deployment.digest:
        raise ConfigError("the job's bundle is refused: its files are not those that the job was made from.")
    return Path(target)


def _copy_parts(source: Path, target: Path) -> None:
    for part in TRAVELLING:
        if (source / part).is_dir():
            ignored = shutil.ignore_patterns(".*", "__pycache__")
            shutil.copytree(source / part, target / part, ignore=ignored, dirs_exist_ok=True)
        elif (source / part).is_file():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / part, target / part)


def refuse_other_files(bundle: Path, files: Iterable[tuple[str, str]]) -> None:
    """Refuse a config file outside of the bundle's configs, for example in its docs, which the lint does not read.

    Args:
        bundle: folder of the bundle.
        files: pairs of what names a file, and the file.

    Raises:
        ConfigError: for the first one.
    """
    linted = {path.resolve() for path in config_files(bundle)}
    for who, file in files:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or Path(bundle, file).resolve() not in linted:
            raise ConfigError(
                f"config file '{file}' ({who}) is not one of the configs of the bundle '{bundle}'; a job uses files of "
                "its folder 'configs' only, by their paths in the bundle."
            )


def named_files(deployment: Deployment) -> Iterator[tuple[str, str]]:
    """The config files that a job names, each with who names it."""
    yield from (("a file of the job", file) for file in deployment.files)
    yield from ((f"override '{key}'", file) for key, file in file_ids(deployment.ids))
