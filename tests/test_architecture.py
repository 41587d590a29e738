# SPDX-License-Identifier: Apache-2.0
"""The house: who may import whom, how long a file may be, what no file may do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fedmonai"
FILES = sorted(PACKAGE.rglob("*.py"))
MATHEMATICS = {"losses", "metrics", "networks", "transforms"}
ALLOWED = {
    **{room: {room} for room in MATHEMATICS},
    "data": {"data", "transforms"},
    "handlers": {"handlers", "losses", "networks"},
    "federated": {"federated"},
    "integrations": {"integrations", "federated", "bundle"},
    "report": {"report"},
    "bundle": {"bundle"},
}
FORBIDDEN_CALLS = {"eval", "exec", "yaml.load", "pickle.load", "pickle.loads"}


def test_files_are_found() -> None:
    assert len(FILES) > 60
    assert {p.relative_to(PACKAGE).parts[0] for p in FILES if len(p.relative_to(PACKAGE).parts) > 1} == set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=[p.relative_to(PACKAGE).as_posix() for p in FILES])
def test_file_keeps_the_rules_of_the_house(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 300
    tree = ast.parse(text)
    parts = path.relative_to(PACKAGE).parts
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fedmonai") and len(parts) > 1:
            room = [*node.module.split("."), "errors"][1]
            assert room in ALLOWED[parts[0]] | {"errors"}, f"{parts[0]} imports {node.module}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            arguments = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert called not in FORBIDDEN_CALLS and not called.endswith("extractall"), called
            assert called != "torch.load" or arguments.get("weights_only") == "True"
            assert arguments.get("allow_pickle", "False") == "False"
            assert arguments.get("shell", "False") == "False"


def test_no_public_name_is_that_of_a_module_beside_it() -> None:
    """From Python 3.12 on, pydoc, which resolves the ``_target_`` of a config, finds the module instead."""
    for path in PACKAGE.glob("*/__init__.py"):
        imported = {
            a.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) for a in n.names
        }
        assert imported.isdisjoint(p.stem for p in path.parent.iterdir())


def test_importing_the_package_is_cheap() -> None:
    heavy = "torch monai matplotlib nvflare flwr"
    code = f"import sys, fedmonai; print(any(m in sys.modules for m in {heavy.split()}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
