# SPDX-License-Identifier: Apache-2.0
"""The strategies and site handlers of the package, found by walking its files, and objects of each to test.

What a class's docstring makes in an example is taken as it stands there. Of a class without one the required arguments
are made by their types, for a network that names its parts as those of the package do.
"""

from __future__ import annotations

import ast
import collections.abc
import doctest
import importlib
import inspect
import pkgutil
import types
import typing
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import fedmonai.handlers
import fedmonai.methods
from fedmonai.federated.protocol import SiteHandler, Strategy

Part = TypeVar("Part")


def found(base: type[Part], packages: tuple[types.ModuleType, ...] = (fedmonai.methods, fedmonai.handlers)) -> list:
    """All subclasses of ``base`` in the files of the packages, without abstract and private ones."""
    names = [f"{package.__name__}.{m.name}" for package in packages for m in pkgutil.iter_modules(package.__path__)]
    classes = {c for name in names for _, c in inspect.getmembers(importlib.import_module(name), inspect.isclass)}
    own = (c for c in classes if issubclass(c, base) and c.__module__ in names and not c.__name__.startswith("_"))
    return sorted((c for c in own if not inspect.isabstract(c)), key=lambda c: c.__name__)


STRATEGIES: list[type[Strategy]] = found(Strategy)
HANDLERS: list[type[SiteHandler]] = found(SiteHandler)


class ExampleNetwork(nn.Module):
    """Parts named as in the networks of the package."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"bottleneck": nn.Linear(2, 2)})
        self.decoder = nn.ModuleDict({**{f"up{i}": nn.Linear(2, 2) for i in range(1, 5)}, "out_conv": nn.Linear(2, 2)})

    def forward(self, image: Tensor) -> Tensor:
        return self.decoder["out_conv"](self.decoder["up1"](self.encoder["bottleneck"](image)))


def made(kind: Any) -> Any:
    """An object of a class, each required argument made by its type."""
    hints = typing.get_type_hints(kind.__init__)
    empty = inspect.Parameter.empty
    needed = [p.name for p in inspect.signature(kind).parameters.values() if p.default is empty and p.kind < 4]
    needed = [name for name in needed if name in hints]
    return kind(**{name: _argument(kind, name, hints[name]) for name in needed})


def _argument(kind: type, name: str, hint: Any) -> Any:
    plain = typing.get_origin(hint) or hint
    simple = {str: "A", int: 1, float: 0.5, bool: True, dict: {}, collections.abc.Mapping: {}}
    if plain in simple:
        return simple[plain]
    if plain in (list, tuple, collections.abc.Sequence, collections.abc.Sized):
        return [{}]
    if plain is collections.abc.Callable:
        return nn.CrossEntropyLoss()
    if plain is nn.Module:
        return ExampleNetwork()
    if plain is torch.optim.Optimizer:
        return torch.optim.SGD(ExampleNetwork().parameters(), lr=0.1)
    if inspect.isclass(plain) and plain is not Any:
        return made(plain)
    raise TypeError(
        f"{kind.__name__}: nothing can be made for '{name}: {hint}'; give the argument a type or a default, or show in "
        "an example of the class's docstring how an object of it is made."
    )


def examples(kind: type[Part]) -> list[Part]:
    """The objects that the examples in a class's docstring make, or one with as few arguments as possible."""
    objects = []
    for example in doctest.DocTestParser().get_examples(kind.__doc__ or ""):
        for node in ast.walk(ast.parse(example.source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == kind.__name__:
                arguments = [ast.literal_eval(value) for value in node.args]
                named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
                objects.append(kind(*arguments, **named))
    return objects or [made(kind)]
