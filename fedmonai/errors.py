# SPDX-License-Identifier: Apache-2.0
"""The exceptions that end in one readable line instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """A setting or an input file cannot be used as given.

    The message is for the person who made the setting: it names the file or id, the value, what is allowed and the
    remedy, in one or two lines. ``python -m monai.bundle`` prints it without a traceback (see
    :func:`fedmonai.bundle.live_config.check_config`).
    """


class FederationError(RuntimeError):
    """A federated run cannot go on; what was committed before stays on disk and the message says how to continue."""


def first_line(error: BaseException, longest: int = 160) -> str:
    """The first line of an exception's text, cut for a message; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:longest]


def root_user_error(error: BaseException | None) -> ConfigError | FederationError | None:
    """The user's mistake under the layers in which MONAI's parser wraps exceptions."""
    while error is not None:
        if isinstance(error, (ConfigError, FederationError)):
            return error
        error = error.__cause__ or error.__context__
    return None


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
