# SPDX-License-Identifier: Apache-2.0
"""The layers of the house: a file imports from its own layer or from any below, never upwards, and in no circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fedmonai"
#: from the ground; a room that is named nowhere belongs to no layer, and its files fail
LAYERS = (
    ("errors", "interruption", "io", "matlab", "names", "seeding", "command_line"),
    ("gate", "networks", "losses", "metrics", "transforms"),
    ("data",),
    ("federated",),
    ("handlers",),
    ("methods",),
    ("bundle",),
    ("report", "experiments"),
    ("integrations",),
    ("commands",),
    ("__main__",),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
FORBIDDEN_CALLS = {"eval", "exec", "yaml.load", "pickle.load", "pickle.loads"}


def module_of(path: Path) -> str:
    """Dotted name of a file of the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, or names in a text that is all code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    known: set[str] = set()
    for name in found:
        parts = name.split(".")
        holders = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        known |= {next((holder for holder in holders if holder in MODULES), "")}
    return known - {"", "fedmonai", module_of(path)}


GRAPH = {module: imported(path) for module, path in MODULES.items()}


def room(module: str) -> str:
    return [*module.split("."), ""][1]


def test_modules_and_imports_between_them_are_found() -> None:
    assert MODULES and any(GRAPH.values())


@pytest.mark.parametrize("module", [name for name in MODULES if name != "fedmonai"])
def test_imports_point_down(module: str) -> None:
    upwards = {other for other in GRAPH[module] if LEVEL[room(other)] > LEVEL[room(module)]}
    assert not upwards


def test_imports_make_no_circle() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_generated_data_are_imported_by_the_command_line_alone() -> None:
    within = {name for name in MODULES if name.startswith("fedmonai.data.generated")}
    assert within
    outside = {name: found for name, others in GRAPH.items() if name not in within and (found := others & within)}
    assert set(outside) <= {"fedmonai.__main__"}


@pytest.mark.parametrize("module", MODULES)
def test_file_makes_no_forbidden_call(module: str) -> None:
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            arguments = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert called not in FORBIDDEN_CALLS and not called.endswith("extractall"), called
            assert called != "torch.load" or arguments.get("weights_only") == "True"
            assert arguments.get("allow_pickle", "False") == "False"
            assert arguments.get("shell", "False") == "False"


def test_importing_the_package_is_cheap() -> None:
    heavy = "torch monai matplotlib nvflare flwr"
    code = f"import sys, fedmonai; print(any(m in sys.modules for m in {heavy.split()}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_gate_and_the_lint_import_no_torch_and_no_component() -> None:
    code = """
import sys
from fedmonai.bundle.lint import lint_bundle
report = lint_bundle(sys.argv[1])
assert report.components and not report.findings, report.findings
rooms = {name for name in sys.modules if name.startswith("fedmonai.")}
print(*sorted({name.split(".")[0] for name in sys.modules} & {"torch", "monai", "ignite", "numpy"}), *sorted(rooms))
"""
    bundle = str(ROOT / "bundles" / "fl_mr")
    done = subprocess.run([sys.executable, "-c", code, bundle], capture_output=True, text=True, check=True)
    rooms = {room(name) for name in done.stdout.split()}
    assert "gate" in rooms
    assert rooms <= {"gate", "bundle", "errors", "io", "names", "seeding"}, done.stdout


@pytest.mark.parametrize("package", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_package_file_imports_nothing_of_the_package(package: str) -> None:
    """Nothing is listed twice, and no function that shares its module's name is hidden by it, or hides it."""
    assert not GRAPH[package]
