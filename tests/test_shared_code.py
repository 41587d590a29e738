# SPDX-License-Identifier: Apache-2.0
"""The tests themselves: what several of them need stands once, and nothing has to be entered in a list."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from tiny_sites import BUNDLES

TESTS = Path(__file__).parent
FILES = sorted(TESTS.rglob("*.py"))
#: shorter definitions, such as a fixture that runs the file's own federation, say less than the name of a module would
LONG = 500


TREES = {path.relative_to(TESTS): ast.parse(path.read_text()) for path in FILES}


def test_no_test_module_imports_another_one() -> None:
    found = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [f"{path}: {name}" for name in names if name.startswith("test_") or name == "conftest"]
    assert FILES and not found


def test_no_two_files_have_one_name() -> None:
    """pytest imports test files by their names alone: of two with one name it collects neither."""
    names = [path.name for path in FILES if path.name != "conftest.py"]
    assert names and not {name for name in names if names.count(name) > 1}


def test_no_definition_is_copied() -> None:
    seen: dict[str, str] = {}
    copies = []
    for path, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("test_"):
                body = [
                    part for part in node.body if not isinstance(part, ast.Expr) or isinstance(part.value, ast.Call)
                ]
                text = "".join(map(ast.dump, body))
                if len(text) > LONG and seen.setdefault(text, f"{path}: {node.name}") != f"{path}: {node.name}":
                    copies.append(f"{path}: {node.name} is {seen[text]}")
    assert seen and not copies


def test_no_list_of_all_bundles() -> None:
    """A further bundle is found by itself; a test that chooses bundles for a reason names fewer."""
    names = {bundle.name for bundle in BUNDLES}
    found = []
    for path, tree in TREES.items():
        if all(f'"{name}"' in (TESTS / path).read_text() for name in names):
            for node in ast.walk(tree):
                parts = getattr(node, "keys" if isinstance(node, ast.Dict) else "elts", ())
                if names <= {part.value for part in parts if isinstance(part, ast.Constant)}:
                    found.append(f"{path}, line {node.lineno}")
    assert names and not found


@pytest.mark.parametrize("path", [path for path in FILES if path.parent == TESTS], ids=lambda path: path.stem)
def test_shared_code_is_shared(path: Path) -> None:
    """A module beside this file is imported by more than one file, or belongs where it is used."""
    if path.stem.startswith("test_") or path.stem == "conftest":
        return
    users = [other for other in FILES if f"from {path.stem} import" in other.read_text()]
    assert len(users) > 1, users
