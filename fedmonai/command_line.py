# SPDX-License-Identifier: Apache-2.0
"""Command line of ``fedmonai``: unknown options are refused before anything runs, and help needs no import."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fire

from fedmonai.errors import root_user_error

__all__ = ["Command", "described_in", "isolated", "run_command_line"]

Function = TypeVar("Function", bound=Callable[..., Any])
_Parameter = inspect.Parameter


@dataclass(frozen=True)
class Command:
    """A function as a command.

    Args:
        function: its arguments become options, its docstring the help. It prints its output, or returns it: a text, a
            list of lines, an exit code, or something with ``exit_code``.
        words: how many of its first arguments may be given without their names.

    Example:
        >>> def double(number: int) -> str:
        ...     return str(2 * number)
        >>> try:
        ...     Command(double).strict()(nmber=2)
        ... except SystemExit as ended:
        ...     print(ended)
        error: --nmber is no option: did you mean --number? Nothing was done.
    """

    function: Callable[..., Any]
    words: int = 0

    def strict(self) -> Callable[..., None]:
        """Wrap the function for fire, which by itself reports a misspelt option only after the call."""
        parameters = inspect.signature(self.function).parameters
        named = [one for one in parameters.values() if one.kind is not _Parameter.VAR_KEYWORD]
        names, any_option = [one.name for one in named], len(named) < len(parameters)

        @functools.wraps(self.function)
        def command(*words: Any, **options: Any) -> None:
            if len(words) > self.words:
                sys.exit(f"error: '{words[self.words]}' belongs to no option; write --option value. Nothing was done.")
            for name in [] if any_option else options:
                if name not in names:
                    close = difflib.get_close_matches(name, names, n=1)
                    hint = f"did you mean --{close[0]}?" if close else f"known are --{', --'.join(names)}."
                    sys.exit(f"error: --{name} is no option: {hint} Nothing was done.")
            try:
                sys.exit(_told(self.function(**dict(zip(names, words, strict=False)), **options)))
            except Exception as error:
                mistake = root_user_error(error)
                if mistake is None:
                    raise
                sys.exit(f"error: {mistake}")

        plain = [one.replace(annotation=_Parameter.empty) for one in named]
        first = [one.replace(kind=_Parameter.POSITIONAL_OR_KEYWORD) for one in plain[: self.words]]
        rest = [one.replace(kind=_Parameter.KEYWORD_ONLY) for one in plain[self.words :]]
        places = _Parameter("words", _Parameter.VAR_POSITIONAL), _Parameter("options", _Parameter.VAR_KEYWORD)
        command.__signature__ = inspect.Signature([*first, places[0], *rest, places[1]])  # type: ignore[attr-defined]
        return command


def run_command_line(table: Mapping[str, Any]) -> None:
    """Run the command that the process was started with, and exit.

    Args:
        table: a :class:`Command` by name, or a group of them.
    """
    chosen: Any = table
    words, path = sys.argv[1:], []
    while words and isinstance(chosen, Mapping) and words[0] in chosen:
        path.append(words[0])
        chosen, words = chosen[words[0]], words[1:]
    # fire takes --help for an option where a function takes any
    if not {"--help", "-h"}.isdisjoint(words) and "--" not in words:
        words = ["--", "--help"]
    fire.Fire(_functions(table), [*path, *words], name="fedmonai")


def _functions(entry: Any) -> Any:
    if isinstance(entry, Command):
        return entry.strict()
    return {name: _functions(one) for name, one in entry.items()}


def _told(result: Any) -> int:
    """Print what a command returned; return its exit code."""
    if isinstance(result, int):
        return result
    if result is not None:
        print(*(result if isinstance(result, list) else [result]), sep="\n")
    return int(getattr(result, "exit_code", 0))


def described_in(module: str, name: str) -> Callable[[Function], Function]:
    """Decorator that gives a function the signature and the docstring of another one, read from its source.

    Help and the check of options then start in less than a second although the other module imports torch.

    Args:
        module: the other function's module, which is not imported.
        name: the other function.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ImportError(f"there is no module {module}")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    node = next(one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == name)
    arguments = node.args
    defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + list(arguments.defaults)
    found = [
        _Parameter(one.arg, _Parameter.KEYWORD_ONLY, default=_Parameter.empty if value is None else _value(value))
        for one, value in zip(arguments.args, defaults, strict=True)
    ]
    if arguments.kwarg is not None:
        found.append(_Parameter(arguments.kwarg.arg, _Parameter.VAR_KEYWORD))

    def decorate(function: Function) -> Function:
        function.__signature__ = inspect.Signature(found)  # type: ignore[attr-defined]
        function.__doc__ = ast.get_docstring(node)
        return function

    return decorate


def _value(default: ast.expr) -> Any:
    """A default as help shows it; in a call the function itself applies it."""
    try:
        return ast.literal_eval(default)
    except ValueError:
        return ast.unparse(default)


def isolated(module: str) -> list[str]:
    """Arguments of Python that run a module and import nothing from the folder in which the process is started."""
    return ["-P" if sys.version_info >= (3, 11) else "-I", "-m", module]
