# SPDX-License-Identifier: Apache-2.0
"""A plan of runs, methods times seeds over one federation, and its execution run by run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigWorkflow

from fedmonai.errors import ConfigError, mistake_behind

__all__ = ["Method", "Plan", "PlannedRun", "execute", "planned_runs", "read_plan"]

PLAN_KEYS = {"seeds", "reference", "ids", "methods"}
METHOD_KEYS = {"bundle", "overlays", "ids"}
#: a run's inputs beside its results, so that a changed plan is never mistaken for the one that was run
RECORD = "planned.json"


@dataclass(frozen=True)
class Method:
    """One row of a comparison: a bundle, overlays of its ``federated.yaml``, and ids that win over both."""

    name: str
    bundle: str
    overlays: tuple[str, ...] = ()
    ids: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Methods and seeds; ``reference`` is the method that the others are tested against."""

    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    reference: str


@dataclass(frozen=True)
class PlannedRun:
    """One method with one seed, and the folder of its run."""

    method: Method
    seed: int
    folder: Path

    @property
    def content(self) -> dict[str, Any]:
        """What the run is, as plain values."""
        method = self.method
        bundle = Path(method.bundle).name
        return {"bundle": bundle, "overlays": list(method.overlays), "ids": dict(method.ids), "seed": self.seed}


def read_plan(path: str | Path, methods: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> Plan:
    """Read a plan: ``seeds``, ``reference`` (the first method by default), ``ids`` for all, and ``methods``.

    ``methods`` is ``{name: {bundle: fl_mr, overlays: [configs/federation/fedprox.yaml], ids: {...}}}``; the ids of a
    method win over the common ones, both are ids of the bundle's ``federated.yaml``.

    Args:
        path: YAML file.
        methods: names of the methods wanted; all by default.
        seeds: instead of the plan's.

    Raises:
        ConfigError: when the file is no plan, or a wanted method is not in it.
    """
    content = _mapping(path)
    _refuse_keys(f"{path}", content, PLAN_KEYS)
    found = [_method(str(path), str(name), spec, content.get("ids") or {}) for name, spec in content["methods"].items()]
    names = [method.name for method in found]
    for name in methods or ():
        if name not in names:
            raise ConfigError(f"methods: '{name}' is not in {path}; it has {', '.join(names)}.")
    reference = str(content.get("reference", names[0]))
    if reference not in names:
        raise ConfigError(f"{path}: reference '{reference}' is none of its methods {', '.join(names)}.")
    chosen = tuple(method for method in found if not methods or method.name in {*methods, reference})
    numbers = tuple(int(seed) for seed in (seeds or content.get("seeds") or (0,)))
    return Plan(chosen, numbers, reference)


def planned_runs(plan: Plan, output_dir: str | Path) -> Iterator[PlannedRun]:
    """The runs of a plan, one seed of all methods after the other: early results already compare."""
    for seed in plan.seeds:
        for method in plan.methods:
            folder = re.sub(r"[^A-Za-z0-9.-]+", "_", method.name).strip("_").lower()
            yield PlannedRun(method, seed, Path(output_dir) / "runs" / folder / f"seed_{seed}")


def execute(run: PlannedRun, bundles: str | Path = "bundles") -> Any:
    """Run, or continue, one run in this process and return its parsed config; a finished run costs nothing.

    Raises:
        ConfigError: when the folder holds a run of another plan, or the run's own config is mistaken.
        FederationError: when the run cannot go on.
    """
    root = Path(bundles) / run.method.bundle
    files = [root / "configs" / "federated.yaml", *(root / overlay for overlay in run.method.overlays)]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise ConfigError(f"method '{run.method.name}': there is no file '{missing[0]}'; correct bundle or overlays.")
    _check_record(run)
    own = {"bundle_root": str(root), "output_dir": str(run.folder), "seed": run.seed, "resume": True}
    workflow = ConfigWorkflow(
        [str(file) for file in files], workflow_type="train", logging_file=False, **{**run.method.ids, **own}
    )
    try:
        workflow.initialize()
        if not _is_finished(run.folder):
            workflow.run()
    except Exception as error:
        mistake = mistake_behind(error)
        if mistake is None:
            raise
        raise mistake from error
    return workflow.parser


def _is_finished(folder: Path) -> bool:
    """Whether the final test was written; only a run that ended has one."""
    path = folder / "metrics.csv"
    return path.is_file() and (folder / "report.md").is_file() and ",test," in path.read_text(encoding="utf-8")


def _check_record(run: PlannedRun) -> None:
    path, text = run.folder / RECORD, json.dumps(run.content, indent=2, sort_keys=True) + "\n"
    if not path.exists():
        run.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"'{run.folder}' holds a run of another plan ({RECORD} differs from method '{run.method.name}', seed "
            f"{run.seed}); choose another output_dir or delete that folder."
        )


def _mapping(path: str | Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"plan '{path}' cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict) or not isinstance(content.get("methods"), dict) or not content["methods"]:
        raise ConfigError(f"plan '{path}' has no methods; write methods: {{FL-MR: {{bundle: fl_mr}}}}.")
    return content


def _method(path: str, name: str, spec: Any, common: Mapping[str, Any]) -> Method:
    spec = spec or {}
    _refuse_keys(f"{path}, method '{name}'", spec, METHOD_KEYS)
    if "bundle" not in spec:
        raise ConfigError(f"{path}: method '{name}' names no bundle; add bundle: fl_mr.")
    ids = {**common, **(spec.get("ids") or {})}
    for key, value in ids.items():
        if value is None:  # MONAI drops such an override without a word
            raise ConfigError(f"{path}: id '{key}' of method '{name}' is null; leave it out or give a value.")
    return Method(name, str(spec["bundle"]), tuple(spec.get("overlays") or ()), ids)


def _refuse_keys(where: str, content: Mapping[str, Any], known: set[str]) -> None:
    for key in content:
        if key not in known:
            raise ConfigError(f"{where}: '{key}' is unknown; known are {', '.join(sorted(known))}.")
