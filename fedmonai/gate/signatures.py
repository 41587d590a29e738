# SPDX-License-Identifier: Apache-2.0
"""Parameters of classes and functions, read from text: a source file's or the catalogue's."""

from __future__ import annotations

import ast
import enum
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

__all__ = ["UNKNOWN", "Parameter", "Parameters", "parameters_of", "parameters_of_text"]


class _Mark(enum.Enum):
    """Marks of defaults that are no plain values."""

    REQUIRED = "no default"
    UNKNOWN = "a default that is no plain value"


REQUIRED, UNKNOWN = _Mark.REQUIRED, _Mark.UNKNOWN


@dataclass(frozen=True)
class Parameter:
    """One parameter: its name, its default, whether it collects further arguments, whether it is declared as a path."""

    name: str
    default: Any = REQUIRED
    collects: bool = False
    is_path: bool = False


#: by name; None when they cannot be told
Parameters = dict[str, Parameter] | None


def parameters_of(arguments: ast.arguments, bound: bool = False) -> dict[str, Parameter]:
    """The parameters of a function in order.

    Args:
        arguments: of its definition.
        bound: whether the first one is the object itself.
    """
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    found = [_parameter(arg, default) for arg, default in zip(positional, defaults, strict=True)]
    found = found[1:] if bound else found
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    found += [_parameter(arg, default) for arg, default in pairs]
    # arguments of a config are given by name, so that *args are out of its reach
    if arguments.kwarg:
        found.append(Parameter(arguments.kwarg.arg, collects=True))
    return {one.name: one for one in found}


def _parameter(arg: ast.arg, default: ast.expr | None) -> Parameter:
    is_path = arg.annotation is not None and "Path" in ast.unparse(arg.annotation)
    return Parameter(arg.arg, REQUIRED if default is None else plain_value(default), is_path=is_path)


def plain_value(node: ast.expr) -> Any:
    """The value that is written, or a mark that it is no plain one."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return UNKNOWN
    return UNKNOWN if value is Ellipsis else value


@lru_cache(maxsize=4096)
def parameters_of_text(text: str) -> dict[str, Parameter]:
    """The parameters of a signature as text, ``(keys, reader=None, log_dir: Path = ..., **kwargs)``."""
    function = ast.parse(f"def f{text}: pass").body[0]
    assert isinstance(function, ast.FunctionDef)  # noqa: S101 (what has just been written)
    return parameters_of(function.args)
