# SPDX-License-Identifier: Apache-2.0
"""The catalogue is what its command writes, and says what torch, MONAI and ignite say; other versions are said."""

from __future__ import annotations

import inspect
import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
from monai.bundle.config_item import ComponentLocator

from fedmonai.gate import catalogue as catalogue_file
from fedmonai.gate.build_catalogue import build_catalogue
from fedmonai.gate.catalogue import FILE, Catalogue, load_catalogue
from fedmonai.gate.names import NameProblem, Names, names_for
from fedmonai.gate.policy import load_policy

PYTHON = (3, 11)  # signatures of what is written in C differ by the version of Python


@pytest.mark.skipif(bool(load_catalogue().other_versions()), reason="made from other versions of torch or MONAI")
@pytest.mark.skipif(sys.version_info[:2] != PYTHON, reason="made with another Python")
def test_file_is_what_the_command_writes() -> None:
    written, now = json.loads(FILE.read_text()), build_catalogue()
    for part in ("versions", "short"):
        assert written[part] == now[part]
    for module in {*written["modules"], *now["modules"]}:
        assert written["modules"].get(module) == now["modules"].get(module), module


def test_file_is_small() -> None:
    assert FILE.stat().st_size < 1_500_000


@pytest.mark.parametrize(
    "name", ["monai.transforms.LoadImaged", "torch.optim.Adam", "ignite.handlers.ProgressBar", "torch.nn.L1Loss"]
)
def test_parameters_are_those_of_the_class(name: str) -> None:
    module, _, last = name.rpartition(".")
    real = inspect.signature(getattr(import_module(module), last)).parameters
    found = names_for().component(name).parameters
    assert found is not None
    assert list(found) == [one.name for one in real.values() if one.kind is not one.VAR_POSITIONAL]
    plain = {one.name: one.default for one in real.values() if type(one.default) in (bool, int, float, str)}
    assert plain
    assert {one: found[one].default for one in plain} == plain


def test_short_names_are_those_of_monai() -> None:
    names, locator = names_for(), ComponentLocator()
    for short in ("StatsHandler", "ValidationHandler", "Compose", "CheckpointSaver"):
        home = locator.get_component_module_name(short)
        assert names.component(short).name == f"{home}.{short}"


def test_ambiguous_short_name_is_refused() -> None:
    shared = {"monai.networks.nets.vqvae": "Encoder", "monai.networks.nets.quicknat": "Encoder Other"}
    names = Names(load_policy(), Catalogue({}, load_catalogue().modules, shared))
    with pytest.raises(NameProblem, match="'Encoder' is ambiguous in MONAI"):
        names.component("Encoder")
    with pytest.raises(NameProblem, match="'NoSuchHandler' is unknown in MONAI"):
        names.component("NoSuchHandler")


def test_other_version_is_one_line_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_file.importlib.metadata, "version", lambda name: "9.9.9+cpu")
    lines = Catalogue({"monai": "1.6.1", "torch": "9.9.9"}, {}, {}).other_versions()
    assert len(lines) == 1
    for part in ("monai 9.9.9 is installed", "1.6.1", "python -m fedmonai.gate.build_catalogue"):
        assert part in lines[0]


def test_refused_names_of_the_policy_exist() -> None:
    """A name that nobody has any more refuses nothing: it has moved, and what it stood for is admitted."""
    gone = []
    for name in load_policy().refused:
        try:
            import_module(name)
        except ImportError:
            module, _, last = name.rpartition(".")
            if name.startswith("fedmonai.") and not hasattr(import_module(module), last):
                gone.append(name)
    assert gone == []


def test_own_parts_of_the_policy_exist() -> None:
    names = names_for()
    kinds = {names.find(name).kind for name in load_policy().own}
    assert kinds == {"module", "callable"}


def test_catalogue_lies_in_the_package() -> None:
    assert FILE.parent == Path(catalogue_file.__file__).parent
