# SPDX-License-Identifier: Apache-2.0
"""What pages and docstrings name is there: modules and what is in them, files, links."""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fedmonai"
FOLDERS = ("benchmarks", "bundles", "bundles_source", "deploy", "docs", "fedmonai", "scripts", "tests")
#: folders of runs lie in some of these, and their reports name what is theirs
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "bundles/*/docs/*.md", "bundles/*/models/README.md", "bundles_source/**/*.md")
    for page in ROOT.glob(pattern)
)
SOURCES = sorted(path for folder in ("fedmonai", "scripts", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
DOTTED = re.compile(r"(?<![\w./-])fedmonai(?:\.(?!ya?ml\b|json\b)[A-Za-z_]\w*)+")
ROLE = re.compile(r":(?:class|func|meth|attr|mod|data):`~?([\w.]+)")
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
FILE = re.compile(r"(?<![\w./<$}-])((?:[\w-]+/)+[\w*-]+\.[a-z]+)(?![\w/])")
IN_FILE = re.compile(r"`([\w/]+\.py): ([A-Za-z_]\w*)")
PART_OF_FILE = pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


@cache
def names_in(file: Path) -> set[str]:
    """Every name that a source file defines, imports or gives to a member of a class."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return names


def resolves(name: str) -> bool:
    """Whether a dotted name is a module of the package, or what a module of it defines. Nothing is imported."""
    place, rest = PACKAGE, name.split(".")[1:]
    while rest and (place / rest[0]).is_dir():
        place /= rest.pop(0)
    if rest and (file := place / f"{rest[0]}.py").is_file():
        place, rest = file, rest[1:]
    file = place if place.is_file() else place / "__init__.py"
    return not rest or set(rest) <= names_in(file)


def test_pages_and_sources_are_found() -> None:
    assert PAGES and SOURCES
    assert not resolves("fedmonai.nowhere") and not resolves("fedmonai.methods.averaging.Nothing")


@PART_OF_FILE
def test_names_of_the_package_resolve(path: Path) -> None:
    wrong = {name for name in DOTTED.findall(path.read_text(encoding="utf-8")) if not resolves(name)}
    assert not wrong, f"{path}: {sorted(wrong)} are not in the package"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_references_in_docstrings_resolve(path: Path) -> None:
    found = {name for name in ROLE.findall(path.read_text(encoding="utf-8")) if not name.startswith("fedmonai.")}
    wrong = {
        name
        for name in found
        if (first := name.split(".")[0]) not in names_in(path) and not (first != name and find_spec(first))
    }
    assert not wrong, f"{path}: {sorted(wrong)} are neither defined nor imported there; write the whole name"


@PAGE
def test_links_lead_to_files(page: Path) -> None:
    wrong = {link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()}
    assert not wrong, f"{page}: no file behind {sorted(wrong)}"


@PAGE
def test_files_of_the_project_exist(page: Path) -> None:
    """Paths from a folder of the project, or from the bundle that a page belongs to."""
    roots = [ROOT, *([page.parents[1]] if page.parents[2] == ROOT / "bundles" else [])]
    found = [name for name in FILE.findall(page.read_text(encoding="utf-8")) if name.split("/")[0] in FOLDERS]
    wrong = {name for name in found if not any(any(root.glob(name)) for root in roots)}
    assert not wrong, f"{page}: {sorted(wrong)} do not exist"


@PAGE
def test_what_a_page_finds_in_a_file_is_there(page: Path) -> None:
    for name, what in IN_FILE.findall(page.read_text(encoding="utf-8")):
        assert any(what in names_in(root / name) for root in (ROOT, PACKAGE) if (root / name).exists()), (name, what)
