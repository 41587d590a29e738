# SPDX-License-Identifier: Apache-2.0
"""The exceptions that end in one readable line instead of a traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """Error in a setting or an input file, which cannot be used as given.

    The message is for the person who made the setting: it names the file or id, the value, what is allowed and the
    remedy, in one or two lines. ``python -m monai.bundle`` prints it without a traceback (see
    :func:`fedmonai.bundle.live_config.check_config`).
    """


class FederationError(RuntimeError):
    """Failure that ends a federated run; earlier commits stay on disk, and the message says how to continue."""


def first_line(error: BaseException, longest: int = 160) -> str:
    """The first line of an exception's text, cut for a message; its type where the text is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:longest]


def root_user_error(error: BaseException | None) -> ConfigError | FederationError | None:
    """The user's mistake under the layers in which MONAI's parser wraps exceptions.

    Such a mistake is also a component that does not take an argument of the config, lacks one or does not exist, and an
    id in a section that does not exist.
    """
    while error is not None:
        if isinstance(error, (ConfigError, FederationError)):
            return error
        if mistake := _mistake_in_component(error) or _mistake_in_id(error):
            return ConfigError(mistake)
        error = error.__cause__ or error.__context__
    return None


#: what MONAI says of a component that could not be made
_NOT_MADE = re.compile("Failed to instantiate component '([^']*)' with keywords: (.*)")


def _mistake_in_component(error: BaseException) -> str:
    """What MONAI says of a component of a config that cannot be called as written; empty for any other error."""
    if isinstance(error, ModuleNotFoundError) and str(error).startswith("Cannot locate class or function path"):
        return f"{first_line(error).rstrip('.')}; correct its _target_."
    cause, named = error.__cause__, _NOT_MADE.match(str(error))
    if not named or not isinstance(cause, TypeError):
        return ""
    unknown = re.search("unexpected keyword argument '([^']*)'", str(cause))
    # either the config's own argument, or raised by the call itself and not by what the component does
    written = unknown is not None and unknown[1] in named[2].split(",")
    if written or (cause.__traceback__ is not None and cause.__traceback__.tb_next is None):
        return f"component '{named[1]}': {first_line(cause)}; correct its arguments in the config."
    return ""


def _mistake_in_id(error: BaseException) -> str:
    """What is wrong with an id that MONAI's parser should set in a missing section; empty for any other error."""
    trace = error.__traceback__ if isinstance(error, (KeyError, IndexError, ValueError)) else None
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name == "__setitem__" and frame.f_globals.get("__name__") == "monai.bundle.config_parser":
            near = re.search("did you mean '[^']*'", str(error.__cause__))
            hint = f"{near[0]}?" if near else "correct it, or give the section as a whole."
            return f"config id '{frame.f_locals.get('id')}' stands in a section that is not there; {hint}"
        trace = trace.tb_next
    return ""


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise a user's mistake itself, out of the layers that MONAI's parser puts around it."""
    try:
        yield
    except Exception as error:
        mistake = root_user_error(error)
        if mistake is None or mistake is error:
            raise
        raise mistake from error
