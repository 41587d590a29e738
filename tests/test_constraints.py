# SPDX-License-Identifier: Apache-2.0
"""What is installed is pinned, for every Python that the package admits; the package says from where to where."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
#: the list that an installation is made with: Flower needs some versions that others do not take
LISTS = {extra: "constraints-flower.txt" if extra == "flower" else "constraints.txt" for extra in ("", *EXTRAS)}


def lines_of(name: str) -> Iterator[str]:
    """The lines of a list and of those that it reads, without comments."""
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("-c "):
            yield from lines_of(line.removeprefix("-c "))
        elif line and not line.startswith("#"):
            yield line


def pins(name: str, python: str) -> dict[str, str]:
    """Version by name, for one Python; a name that stands twice is an error."""
    found: dict[str, str] = {}
    for line in lines_of(name):
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate({"python_version": python, "python_full_version": f"{python}.1"}):
            (one,) = pin.specifier
            key = canonicalize_name(pin.name)
            assert key not in found, f"{pin.name} is pinned twice for Python {python}"
            found[key] = one.version
    return found


def requirements(extra: str) -> list[Requirement]:
    return [Requirement(text) for text in (EXTRAS[extra] if extra else PROJECT["dependencies"])]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", LISTS)
def test_every_requirement_is_pinned_within_its_bounds(extra: str, python: str) -> None:
    pinned = pins(LISTS[extra], python)
    for needed in requirements(extra):
        version = pinned.get(canonicalize_name(needed.name))
        assert version is not None, f"{needed.name} is not pinned for Python {python}"
        assert needed.specifier.contains(version), f"{needed} is pinned at {version}"


@pytest.mark.parametrize("extra", LISTS)
def test_requirements_have_bounds_below_and_above(extra: str) -> None:
    for needed in requirements(extra):
        assert {one.operator for one in needed.specifier} == {">=", "<"}, f"{needed} has no bound on one side"


@pytest.mark.parametrize("name", sorted(set(LISTS.values())))
def test_lists_hold_versions_alone(name: str) -> None:
    """No builds (torch's ``+cpu``), hashes or addresses: any index that serves the versions will do."""
    lines = list(lines_of(name))
    assert lines
    for line in lines:
        assert re.fullmatch(r'[\w.-]+==[\w.]+(; python_version (<|>=) "3\.1\d")?', line), line


def needed_by(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> Iterator[str]:
    """What an installed package needs here, and what that needs, as far as it is installed."""
    if (name, extras) in seen:
        return
    seen.add((name, extras))
    try:
        texts = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return
    yield canonicalize_name(name)
    for needed in map(Requirement, texts):
        # what a build of torch brings along is asked for on a platform: it is left to the build
        if name == "torch" and needed.marker is not None and "platform" in str(needed.marker):
            continue
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield from needed_by(canonicalize_name(needed.name), frozenset(needed.extras), seen)


@pytest.mark.parametrize("extra", LISTS)
def test_what_is_installed_for_it_is_pinned(extra: str) -> None:
    seen: set[tuple[str, frozenset[str]]] = set()
    names = {name for one in requirements(extra) for name in needed_by(one.name, frozenset(one.extras), seen)}
    missing = names - set(pins(LISTS[extra], "{}.{}".format(*sys.version_info)))
    assert not missing, f"not pinned: {sorted(missing)}"


def test_what_the_package_imports_is_required() -> None:
    """A package that comes with another one today need not come with it tomorrow."""
    required = {canonicalize_name(one.name) for extra in LISTS for one in requirements(extra)}
    owners = metadata.packages_distributions()
    for path in sorted((ROOT / "fedmonai").rglob("*.py")):
        for module in re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            distributions = {canonicalize_name(owner) for owner in owners.get(module, ())}
            assert module == "fedmonai" or not distributions or distributions & required, f"{path}: {module}"
