# SPDX-License-Identifier: Apache-2.0
"""Runs of a plan, methods times seeds over one federation: checked all together, then executed one by one."""

from __future__ import annotations

import copy
import gc
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from fedmonai import __file__ as package_file
from fedmonai.bundle.ids import apply_overrides, suggestion
from fedmonai.bundle.layers import refuse_dropped
from fedmonai.errors import ConfigError, FederationError, unwrapped
from fedmonai.experiments.plan import Method, Plan
from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.process_pool import ProcessPool
from fedmonai.io import load_checked, write_table, write_text
from fedmonai.report.comparison import ComparedRun

__all__ = ["PlannedRun", "check_runs", "compared_runs", "execute", "planned_runs", "source_state", "write_cross_site"]

#: a run's inputs beside its results; a changed plan is told from the one that was run
RECORD = "planned.json"
#: the state of the program that made the run; a continued run keeps the newest
SOURCE = "source.json"
CROSS_SITE_COLUMNS = ("model_site", "test_site", "metric", "value")


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

    @property
    def record(self) -> str:
        """The text of its :attr:`content` in the folder."""
        return json.dumps(self.content, indent=2, sort_keys=True, default=str) + "\n"


def compared_runs(plan: Plan, finished: Sequence[PlannedRun]) -> list[ComparedRun]:
    """The rows of a comparison, one for every finished run and every method that reads it."""
    found = []
    for method in plan.methods:
        for run in finished:
            if run.method.name == (method.run_of or method.name):
                found.append(ComparedRun(method.name, run.seed, run.folder, method.model))
    return found


def source_state() -> dict[str, Any]:
    """The commit of the program, ``None`` where it is no checkout, and whether files differ from it."""
    folder = Path(package_file).parents[1]

    def git(*arguments: str) -> str | None:
        words = ["git", "-C", str(folder), *arguments]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=30)  # noqa: S603 (git, of our own folder)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "fedmonai/__init__.py") is None:  # installed, or in somebody else's checkout
        return {"commit": None, "changed": False}
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "fedmonai", "bundles", "plans")
    return {"commit": git("rev-parse", "--short=12", "HEAD"), "changed": bool(changed)}


def planned_runs(plan: Plan, output_dir: str | Path) -> Iterator[PlannedRun]:
    """The runs of a plan, one seed of all methods after the other: early results already compare."""
    for seed in plan.seeds:
        for method in (method for method in plan.methods if method.run_of is None):
            yield PlannedRun(method, seed, Path(output_dir) / "runs" / method.folder / f"seed_{seed}")


def check_runs(runs: Sequence[PlannedRun], bundles: str | Path = "bundles") -> None:
    """Check that every run can start, before the first of them begins; nothing is trained.

    A method's first run that is not finished is made ready to its first round: ids, components, and all its sites with
    their data. Its other seeds differ in the seed only.

    Raises:
        ConfigError: for the first that cannot; the message names the method.
    """
    for run in runs:
        _check_record(run)
    checked = set()
    for run in runs:
        if run.method.name not in checked and not _is_finished(run.folder):
            checked.add(run.method.name)
            try:
                _prepared(run, bundles).close()
            except Exception as error:  # any exception of a component is a message for the author of the plan
                raise ConfigError(f"method '{run.method.name}' cannot start: {_innermost(error)}") from error
            gc.collect()  # engines and their handlers refer to each other, and a site holds its data


def execute(run: PlannedRun, bundles: str | Path = "bundles") -> Any:
    """Run, or continue, one run in this process and return its federation; a finished run is not repeated.

    Raises:
        ConfigError: when the folder holds a run of another plan, or the run's own config is mistaken.
        FederationError: when the run cannot go on.
    """
    _check_record(run)
    workflow = _workflow(run, bundles)
    with unwrapped():
        workflow.initialize()
        federation: Any = workflow.parser.get_parsed_content("federation")
        if not _is_finished(run.folder):
            federation.prepare()
            # only now: a run that could not start leaves its folder free for the corrected plan
            write_text(run.record, run.folder / RECORD)
            write_text(json.dumps(source_state()) + "\n", run.folder / SOURCE)
            workflow.run()
    return federation


def write_cross_site(federation: Federation, path: str | Path) -> bool:
    """Test the personal model of every site on the test split of every tested site, and write a table of means.

    For a finished run in this process. The evaluation changes nothing at the sites. A site's test data are prepared as
    that site prepares them (mask, size), whichever model is tested.

    Args:
        federation: the engine of the run.
        path: CSV file with the columns ``model_site, test_site, metric, value``.

    Raises:
        ConfigError: when the sites live elsewhere.

    Returns:
        whether there are such models; a method with one global model for all has no matrix.
    """
    sites, plan = federation.sites, federation.sites.plan
    if isinstance(sites, ProcessPool):  # its workers have ended; the files are all that is needed
        sites = LocalPool(plan, resident_sites=1)
    if not isinstance(sites, LocalPool):
        raise ConfigError("the models of sites elsewhere stay there; cross_site needs a federation on this machine.")
    files = {name: plan.own_model(name) for name in plan.names if plan.own_model(name).is_file()}
    if not files:
        return False
    rows = []
    for owner, file in files.items():
        weights = load_checked(file)
        for name in federation.test_sites:
            metrics = sites.open(name).evaluate_weights(weights, "test")
            rows += [(owner, name, metric, value) for metric, value in metrics.items()]
    write_table(CROSS_SITE_COLUMNS, rows, path)
    return True


def _innermost(error: BaseException) -> str:
    if isinstance(error, (ConfigError, FederationError)):
        return str(error)
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _prepared(run: PlannedRun, bundles: str | Path) -> Any:
    workflow = _workflow(run, bundles)
    with unwrapped():
        workflow.initialize()
        federation: Any = workflow.parser.get_parsed_content("federation")
        federation.prepare()
    return federation


def _workflow(run: PlannedRun, bundles: str | Path) -> ConfigWorkflow:
    root = Path(bundles) / run.method.bundle
    files = ["configs/federated.yaml", *run.method.overlays]
    _check_files(run.method, Path(bundles), files)
    refuse_dropped([(file, ConfigParser.load_config_file(root / file) or {}) for file in files])
    workflow = ConfigWorkflow([str(root / file) for file in files], workflow_type="train", logging_file=False)
    own = {"bundle_root": str(root), "output_dir": str(run.folder), "seed": run.seed, "resume": True}
    # copied: ids such as sites::A::sequence change what the parser holds, and all methods share the plan's values
    apply_overrides(workflow.parser, {**copy.deepcopy(dict(run.method.ids)), **own})
    return workflow


def _check_files(method: Method, bundles: Path, files: Sequence[str]) -> None:
    root = bundles / method.bundle
    if not (root / files[0]).is_file():
        there = sorted(path.parents[1].name for path in bundles.glob(f"*/{files[0]}"))
        hint = suggestion(method.bundle, there) or "give their folder as --bundles."
        raise ConfigError(f"bundle '{method.bundle}' is not in '{bundles}' (no file '{root / files[0]}'); {hint}")
    for file in files[1:]:
        if not (root / file).is_file():
            there = [path.relative_to(root).as_posix() for path in sorted((root / "configs").rglob("*.yaml"))]
            hint = suggestion(file, there) or "overlays lie in configs of the bundle."
            raise ConfigError(f"there is no overlay '{root / file}'; {hint}")


def _is_finished(folder: Path) -> bool:
    """Whether the final test was written; only a run that ended has one."""
    path = folder / "metrics.csv"
    return path.is_file() and (folder / "report.md").is_file() and ",test," in path.read_text(encoding="utf-8")


def _check_record(run: PlannedRun) -> None:
    """Refuse a folder whose results are of another plan; one without a committed round has none yet."""
    path = run.folder / RECORD
    committed = any((run.folder / name).exists() for name in ("federation.pt", "federation.previous.pt"))
    if committed and (not path.exists() or path.read_text(encoding="utf-8") != run.record):
        raise ConfigError(
            f"'{run.folder}' holds a run of another plan ({RECORD} differs from method '{run.method.name}', seed "
            f"{run.seed}); choose another output_dir or delete that folder."
        )
