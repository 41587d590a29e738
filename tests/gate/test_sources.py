# SPDX-License-Identifier: Apache-2.0
"""Own packages are read from their sources: as Python would read them, without importing one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedmonai.errors import ConfigError
from fedmonai.gate.config import config_problems
from fedmonai.gate.expressions import expression_problems
from fedmonai.gate.names import NameProblem, names_for
from fedmonai.gate.policy import load_policy


def own_components() -> Iterator[tuple[str, Any]]:
    """Every public class and function that an admitted room defines, with its dotted name."""
    for part in load_policy().own:
        for info in pkgutil.walk_packages([str(Path(__file__).parents[2].joinpath(*part.split(".")))], f"{part}."):
            module = importlib.import_module(info.name)
            for last, value in vars(module).items():
                mine = getattr(value, "__module__", "") == module.__name__
                if mine and not last.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
                    yield f"{module.__name__}.{last}", value


def test_parameters_read_are_those_of_python() -> None:
    names, compared = names_for(), 0
    for name, value in own_components():
        try:
            found = names.component(name)
        except NameProblem as problem:
            assert "without a form" in str(problem)  # all of them are found
            continue
        try:
            real = inspect.signature(value).parameters.values()
        except ValueError:
            continue
        if found.parameters and not found.reads_ids:  # those of some bases are not told: such a class takes any
            assert list(found.parameters) == [one.name for one in real if one.kind is not one.VAR_POSITIONAL], name
            compared += 1
    assert compared


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of a hospital; importing any part of it ends the test."""
    root = tmp_path / "my_lab_of_tests"
    root.mkdir()
    stop = "raise SystemExit('imported')\n"
    (root / "__init__.py").write_text(stop + "from my_lab_of_tests.nets import Net\nfrom os import system\n")
    (root / "nets.py").write_text(
        stop
        + """
import os
import torch
from monai.networks.nets import UNet as Base
from .more import Further
class Net(torch.nn.Module):
    CONFIG_NAMES = ("experts", "_secret")
    CONFIG_FORMS = {"names": "@names"}
    def __init__(self, width: int, names=(), allow_pickle=False): ...
    def forward(self, x): ...
class Wider(Net): ...
class Stock(Base): ...
class _Private: ...
WIDTH = 8
RUN = os.system
def build(width=1): ...
"""
    )
    (root / "more.py").write_text("class Further:\n    def __init__(self, path): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return root


LAB = ("my_lab_of_tests",)


def problems(component: dict[str, Any], allow: tuple[str, ...] = LAB) -> list[str]:
    return [problem for _, problem in config_problems({"names": [1], "x": component}, names_for(allow))]


@pytest.mark.parametrize("name", ["nets.Net", "nets.Wider", "Net", "nets.Stock", "nets.build", "nets.Further"])
def test_admitted_package_is_read_without_import(name: str, lab: Path) -> None:
    target = f"my_lab_of_tests.{name}"
    assert problems({"_target_": target}) == []
    assert any("is not among the names" in problem for problem in problems({"_target_": target}, ()))
    assert not {module for module in sys.modules if module.startswith("my_lab_of_tests")}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"_target_": "my_lab_of_tests.nets.os.system"}, "leads through 'my_lab_of_tests.nets.os' to the module 'os'"),
    ({"_target_": "my_lab_of_tests.system"}, "is really 'os.system'"),
    ({"_target_": "my_lab_of_tests.nets.RUN"}, "is no class, no function"),
    ({"_target_": "my_lab_of_tests.nets.WIDTH"}, "is a value, not a class"),
    ({"_target_": "my_lab_of_tests.nets"}, "is a module, not a class"),
    ({"_target_": "my_lab_of_tests.nets._Private"}, "private name"),
    ({"_target_": "my_lab_of_tests.nets.Net.forward"}, "is a method"),
    ({"_target_": "my_lab_of_tests.nets.None_"}, "does not exist"),
    ({"_target_": "my_lab_of_tests.nowhere.Net"}, "does not exist"),
    ({"_target_": "my_lab_of_tests_2.nets.Net"}, "is not among the names"),
    ({"_target_": "my_lab_of_tests.nets.Wider", "widht": 1}, "takes no argument 'widht'"),
    ({"_target_": "my_lab_of_tests.nets.Net", "allow_pickle": True}, "allow_pickle: True is not allowed"),
    ({"_target_": "my_lab_of_tests.nets.Net", "names": "$@x"}, "takes it as '@names' only"),
    ({"_target_": "my_lab_of_tests.nets.Wider", "names": [1]}, "takes it as '@names' only"),
    ({"_target_": "my_lab_of_tests.nets.Stock", "chanels": 1}, "takes no argument 'chanels'"),
]


@pytest.mark.parametrize(("component", "reason"), REFUSED, ids=range(len(REFUSED)))
def test_admitted_package_keeps_the_rules(component: dict[str, Any], reason: str, lab: Path) -> None:
    assert any(reason in problem for problem in problems(component)), problems(component)


def test_declared_form_is_taken(lab: Path) -> None:
    assert problems({"_target_": "my_lab_of_tests.nets.Net", "width": 1, "names": "@names"}) == []


def test_expressions_use_what_a_class_declares(lab: Path) -> None:
    names = names_for(LAB)
    assert expression_problems("$@net.experts()", names) == []
    assert expression_problems("$@net._secret", names)
    assert expression_problems("$@net.experts()")  # not where the package is not admitted
    assert expression_problems("$import my_lab_of_tests", names) == []
    assert expression_problems("$my_lab_of_tests.nets.WIDTH", names) == []
    assert expression_problems("$my_lab_of_tests.nets.build(2)", names)


@pytest.mark.parametrize("name", ["os", "torch", "monai.apps", "fedmonai.bundle", "my-lab", "_lab", "", "a..b", 5])
def test_only_packages_of_ones_own_are_admitted(name: Any) -> None:
    with pytest.raises(ConfigError, match="allow: "):
        names_for([name] if name else ["a", "."])


def test_part_of_a_package_is_admitted(lab: Path) -> None:
    names = names_for("my_lab_of_tests.more")
    assert names.component("my_lab_of_tests.more.Further").parameters
    with pytest.raises(NameProblem, match="is not among the names"):
        names.component("my_lab_of_tests.nets.Net")
