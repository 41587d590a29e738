# SPDX-License-Identifier: Apache-2.0
"""Commands of scripts: unknown options are refused before anything runs."""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import fire

from fedmonai.errors import ConfigError


def run_command(function: Callable[..., Any], report: Callable[[Any], int | None]) -> None:
    """Run ``function`` with the options of the command line and exit.

    fire alone calls the function first and complains about a misspelt option (``--chek`` for ``--check``) afterwards,
    when files are written already. Here unknown options and stray words end the program with nothing done.

    Args:
        function: its keyword arguments become options, its docstring the help text.
        report: prints the function's result and returns the exit code (None = 0).
    """
    fire.Fire(strict(function, report))


def strict(function: Callable[..., Any], report: Callable[[Any], int | None]) -> Callable[..., None]:
    """Wrap ``function`` for fire, so that unknown options end the program."""
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def command(*words: Any, **options: Any) -> None:
        if words:
            sys.exit(f"'{words[0]}' belongs to no option; write --option value. Nothing was done.")
        for name in options:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean --{close[0]}?" if close else f"known are --{', --'.join(known)}."
                sys.exit(f"--{name} is no option: {hint} Nothing was done.")
        try:
            result = function(**options)
        except ConfigError as error:
            sys.exit(str(error))
        sys.exit(report(result))

    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in known.values()]
    words = inspect.Parameter("words", inspect.Parameter.VAR_POSITIONAL)
    rest = inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)
    command.__signature__ = inspect.Signature([words, *keyword_only, rest])  # type: ignore[attr-defined]
    return command
