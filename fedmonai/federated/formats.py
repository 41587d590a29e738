# SPDX-License-Identifier: Apache-2.0
"""Format versions of what outlives a process or leaves it: messages on the wire, state on disk, jobs.

A number goes up when what is written is no longer understood by the version before; ``tests/golden/formats`` holds one
file of each, so that no change goes unnoticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedmonai.errors import ConfigError

__all__ = ["JOB_FORMAT", "MESSAGE_FORMAT", "STATE_FORMAT", "FormatError", "check_format"]

#: of :func:`fedmonai.federated.messages.pack`
MESSAGE_FORMAT = 1
#: of ``federation.pt`` and of the sites' ``round_NNNN.pt``
STATE_FORMAT = 1
#: of a job's ``fedmonai.json``
JOB_FORMAT = 1


class FormatError(ConfigError):
    """Written in another format: nothing is damaged, and nothing of it is used."""


def check_format(what: str, content: Any, known: int, remedy: str) -> None:
    """Refuse content that does not say that it is of the format that is read here.

    Args:
        what: name of the content, for the message.
        content: mapping with the number under ``format``.
        known: the format that is read.
        remedy: what to do about another one.

    Raises:
        FormatError: on another format, or on none.
    """
    found = content.get("format") if isinstance(content, Mapping) else None
    if isinstance(found, bool) or found != known:
        said = "names no format" if found is None else f"is of format {str(found)[:20]}"
        raise FormatError(f"{what} {said}; this version of fedmonai reads format {known}. {remedy}")
