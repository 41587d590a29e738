# SPDX-License-Identifier: Apache-2.0
"""The catalogue is what its command writes; own components declare every path; other versions are said."""

from __future__ import annotations

import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fedmonai.gate import catalogue as catalogue_file
from fedmonai.gate.build_catalogue import build_catalogue
from fedmonai.gate.catalogue import FILE, Catalogue, load_catalogue
from fedmonai.gate.names import NameProblem, names_for
from fedmonai.gate.policy import load_policy
from fedmonai.gate.sources import ENTRIES, INPUT, NAME, OUTPUT

PYTHON = (3, 11)  # signatures of what is written in C differ by the version of Python
COMPONENTS = load_catalogue().components


@pytest.mark.skipif(bool(load_catalogue().other_versions()), reason="made from other versions of torch or MONAI")
@pytest.mark.skipif(sys.version_info[:2] != PYTHON, reason="made with another Python")
def test_file_is_what_the_command_writes() -> None:
    written, now = json.loads(FILE.read_text()), build_catalogue()
    assert written["versions"] == now["versions"]
    differ = {
        name
        for name in {*written["components"], *now["components"]}
        if written["components"].get(name) != now["components"].get(name)
    }
    assert not differ


def test_file_lies_in_the_package_and_is_read_line_by_line() -> None:
    assert FILE.parent == Path(catalogue_file.__file__).parent
    assert len(FILE.read_text().splitlines()) > len(COMPONENTS)


@pytest.mark.parametrize("name", ["torch.optim.Adam", "monai.losses.DiceLoss", "monai.handlers.CheckpointSaver"])
def test_parameters_are_some_of_those_of_the_class(name: str) -> None:
    module, _, last = name.rpartition(".")
    real = inspect.signature(getattr(import_module(module), last)).parameters
    found = names_for().component(name).parameters
    assert found and set(found) <= set(real)
    plain = {one.name: one.default for one in real.values() if type(one.default) in (bool, int, float, str)}
    assert {one: found[one].default for one in set(plain) & set(found)} == {
        one: plain[one] for one in set(plain) & set(found)
    }


def test_argument_that_is_a_function_or_a_path_is_withheld() -> None:
    policy = load_policy()
    forms = (policy.path_arguments, policy.fetching_arguments, policy.function_arguments)
    assert "other_act" not in names_for().component("monai.losses.DiceLoss").parameters  # type: ignore[operator]
    for name in set(COMPONENTS) - set(policy.components):
        given = names_for().component(name).parameters or {}
        assert not [one for one in given if any(re.fullmatch(form, one) for form in forms)], name


LEFT_OUT = [
    "monai.transforms.LoadImaged",
    "monai.transforms.SaveImage",
    "monai.transforms.TorchIO",
    "monai.transforms.Lambdad",
    "monai.networks.nets.HoVerNet",
    "monai.networks.nets.EfficientNetBN",
    "monai.inferers.PatchInferer",
    "monai.losses.PerceptualLoss",
    "monai.handlers.LogfileHandler",
    "monai.handlers.TensorBoardImageHandler",
    "monai.data.Dataset",
    "ignite.metrics.FID",
    "torch.optim.lr_scheduler.LambdaLR",
]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_reads_writes_fetches_or_calls_anything_is_left_out(name: str) -> None:
    module, _, last = name.rpartition(".")
    assert hasattr(import_module(module), last), "there is no such class: the test shows nothing"
    with pytest.raises(NameProblem):
        names_for().component(name)


@pytest.mark.parametrize(
    "name", ["monai.losses.TverskyLoss", "monai.networks.nets.UNet", "torch.optim.SGD", "monai.metrics.DiceMetric"]
)
def test_loss_network_and_optimizer_can_be_swapped(name: str) -> None:
    assert names_for().component(name).parameters is not None


def own_components() -> Iterator[tuple[str, Any]]:
    for part in load_policy().own:
        for info in pkgutil.walk_packages([str(Path(__file__).parents[2].joinpath(*part.split(".")))], f"{part}."):
            module = import_module(info.name)
            for last, value in vars(module).items():
                mine = getattr(value, "__module__", "") == module.__name__
                if mine and not last.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
                    yield f"{module.__name__}.{last}", value


def test_no_own_component_takes_a_free_path() -> None:
    """Judged by Python's own view of the classes, not by the gate's reading of their sources."""
    policy, checked, admitted = load_policy(), 0, 0
    for name, value in own_components():
        try:
            found = names_for().component(name)
        except NameProblem:
            continue
        admitted += 1
        try:
            real = inspect.signature(value).parameters.values()
        except ValueError:
            continue
        for one in real:
            text = str(one.annotation)
            free = "Path" in text and not any(kind in text for kind in (INPUT, OUTPUT))
            named = re.fullmatch(policy.path_arguments, one.name) and text not in ("int", "bool", "float")
            declared = (found.parameters or {}).get(one.name)
            assert not free, f"{name}({one.name}: {text})"
            assert not named or any(kind in text for kind in (INPUT, OUTPUT, NAME, ENTRIES)), (
                f"{name}({one.name}: {text})"
            )
            checked += bool(declared and declared.kind)
    assert admitted and checked


def test_name_without_a_dot_is_refused_with_the_whole_one() -> None:
    """MONAI looks for it in the modules that happen to be loaded, several of which may have it."""
    with pytest.raises(NameProblem, match=r"write monai\.handlers\.StatsHandler"):
        names_for().component("StatsHandler")
    for name in ("Filter", "SummaryFilter", "NoSuchHandler"):
        with pytest.raises(NameProblem, match="is no dotted name"):
            names_for().component(name)


def test_other_version_is_one_line_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_file.importlib.metadata, "version", lambda name: "9.9.9+cpu")
    lines = Catalogue({"monai": "1.6.1", "torch": "9.9.9"}, {}).other_versions()
    assert len(lines) == 1
    for part in ("monai 9.9.9 is installed", "1.6.1", "python -m fedmonai.gate.build_catalogue"):
        assert part in lines[0]


def test_own_parts_of_the_policy_exist() -> None:
    names = names_for()
    kinds = {names.find(name).kind for name in load_policy().own}
    assert kinds == {"module", "callable"}


def test_functions_and_values_of_expressions_exist() -> None:
    for name in (*load_policy().callable, *load_policy().values):
        module, _, last = name.rpartition(".")
        assert hasattr(import_module(module), last), name
