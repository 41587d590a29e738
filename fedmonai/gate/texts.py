# SPDX-License-Identifier: Apache-2.0
"""Texts of a whole config, put together without evaluating them: addresses, paths, values of sites."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fedmonai.gate.expressions import parsed, referred
from fedmonai.gate.names import NameProblem, Names
from fedmonai.gate.reading import COMPONENT_KEYS, walk
from fedmonai.gate.references import value_at

__all__ = ["Texts"]

#: in the place of a part that is known at run time only; that an own component makes; that is null until it is set
_UNKNOWN, _MADE, _UNSET = "\0", "\1", "\2"
_CODE = re.compile(r"\.(py[cdiowz]?|so|dll|pth|sh|bat|exe|egg|whl|zip|conf|ya?ml)$", re.IGNORECASE)
MAX_DEPTH = 20
MAX_FORMS = 16


class Texts:
    """The texts of one merged config.

    Args:
        config: in which no other check has found anything.
        names: what is admitted.
    """

    def __init__(self, config: Mapping[str, Any], names: Names) -> None:
        self.config = config
        self.names = names
        self._is_path = re.compile(names.policy.path_arguments)

    def problems(self) -> Iterator[tuple[str, str]]:
        """(id, problem) of sums that become an address or lead out, and of paths that cannot be told here."""
        for config_id, value in walk(self.config):
            if isinstance(value, str) and value.startswith("$") and not value.startswith("$import "):
                yield from ((config_id, problem) for problem in self._sum_problems(value))
            elif isinstance(value, Mapping) and "_target_" in value:
                for key, problem in self._path_problems(value):
                    yield f"{config_id}::{key}", problem

    def is_written(self, value: Any, depth: int = 0) -> bool:
        """Whether a value consists of what is written in the config; no component and no call makes a part of it."""
        if isinstance(value, str):
            return all(_UNKNOWN not in form and _MADE not in form for form in self.forms(value, depth))
        if isinstance(value, Mapping):
            return "_target_" not in value and all(self.is_written(inner, depth) for inner in value.values())
        return not isinstance(value, list) or all(self.is_written(inner, depth) for inner in value)

    def forms(self, value: Any, depth: int = 0) -> list[str]:
        """What a value can become as a text; several for a choice, with marks in the places of unknown parts."""
        if depth > MAX_DEPTH:
            return [_UNKNOWN]
        if isinstance(value, str) and value.startswith("$"):
            return self._node(parsed(value), depth)
        if isinstance(value, str) and value.startswith(("@", "%")):
            return self._at(value[1:], depth)
        if isinstance(value, Mapping) and "_target_" in value:
            return [self._made(value["_target_"])]
        if isinstance(value, (Mapping, list)):  # each of them is a path, say; as a part of a text it is an error
            inner = value.values() if isinstance(value, Mapping) else value
            return [form for one in inner for form in self.forms(one, depth + 1)] or [_UNSET]
        return [_UNSET if value is None else str(value)]

    def _at(self, name: str, depth: int) -> list[str]:
        try:
            return self.forms(value_at(self.config, name), depth + 1)
        except KeyError:
            return [_UNKNOWN]  # a part of what a component has made

    def _made(self, target: Any) -> str:
        try:
            return _MADE if self.names.component(target).own else _UNKNOWN
        except NameProblem:
            return _UNKNOWN

    def _node(self, node: ast.expr, depth: int) -> list[str]:
        name = referred(node)
        if name is not None:
            return self._at(name, depth)
        if isinstance(node, ast.Constant):
            return [str(node.value)]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            pairs = itertools.product(self._node(node.left, depth), self._node(node.right, depth))
            found = ["".join(pair) for pair in itertools.islice(pairs, MAX_FORMS + 1)]
            return found if len(found) <= MAX_FORMS else [_UNKNOWN]
        if isinstance(node, ast.IfExp):
            return [*self._node(node.body, depth), *self._node(node.orelse, depth)]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str" and node.args:
            return self._node(node.args[0], depth)
        # of the environment, what torchrun tells: a number
        return ["0"] if ast.unparse(node).startswith("os.environ[") else [_UNKNOWN]

    def _sum_problems(self, value: str) -> Iterator[str]:
        for form in self.forms(value):
            if "://" in form:
                yield f"{value!r:.80} becomes an address ({form!a:.80}); a bundle fetches and sends nothing"
            elif form.startswith(("/", "~", "\\")) or ".." in re.split(r"[\\/]", form):
                yield f"{value!r:.80} becomes a path out of the bundle ({form!a:.80})"

    def _path_problems(self, component: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        parameters = self.names.component(component["_target_"]).parameters or {}
        for key, value in component.items():
            declared = key in parameters and parameters[key].is_path
            if key in COMPONENT_KEYS or not (declared or self._is_path.fullmatch(str(key))):
                continue
            for form in self.forms(value):
                if _UNKNOWN in form:
                    problem = "is a path that cannot be told here; give a reference to a folder and a written rest"
                    yield key, f"{value!r:.80} {problem}, as in $@output_dir + '/name'"
                elif _CODE.search(form):
                    yield key, f"{value!r:.80} names a file of code or settings ({form!a:.80})"
