# SPDX-License-Identifier: Apache-2.0
"""Errors of a room name only options of the command that serves it."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT / "fedmonai" / "data"
#: room to the module and its functions that are commands; files of the room itself are shared and name no option
SERVED = {
    "convert": ("fedmonai.data.convert.prepare", ("prepare_mri",)),
    "cases": ("fedmonai.commands.prostate", ("prepare_prostate",)),
    "weak": ("fedmonai.commands.weak_labels", ("make_labels", "convert_scribbles", "report_labels")),
    "partition.py": ("fedmonai.data.partition", ("simulate_sites",)),
}


def _options(path: Path) -> Iterator[tuple[str, str]]:
    """(place, option) of every ``--option`` in a text of the code that is no docstring."""
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        documents = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
                for name in re.findall(r"(?<![\w-])--([a-z]\w*)", node.value):
                    yield f"{file.name}:{node.lineno}", name


@pytest.mark.parametrize("served", SERVED)
def test_every_option_in_an_error_is_one_of_its_command(served: str) -> None:
    module, functions = SERVED[served]
    members = [getattr(import_module(module), name) for name in functions]
    known = {name for function in members for name in inspect.signature(function).parameters}
    found = list(_options(DATA / served))
    assert [place for place, name in found if name not in known] == []


def test_rooms_that_serve_several_commands_name_no_option() -> None:
    others = [path for path in sorted(DATA.iterdir()) if path.name not in SERVED and path.suffix in ("", ".py")]
    assert len(others) > len(SERVED)
    assert [found for path in others for found in _options(path)] == []


def test_options_are_found_at_all() -> None:
    assert {"subject", "exclude", "pad"} <= {name for _, name in _options(DATA / "convert")}
