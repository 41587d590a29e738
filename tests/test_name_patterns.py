# SPDX-License-Identifier: Apache-2.0
"""Names chosen by patterns, arguments that are one or several, values in messages."""

from __future__ import annotations

import pytest

from fedmonai.errors import ConfigError, first_line
from fedmonai.federated.messages import SharedKeys
from fedmonai.names import as_list, matching_names, shown

NAMES = ["encoder.w", "encoder.norm.w", "decoder.w"]


def test_names_keep_their_order_and_come_once() -> None:
    assert matching_names(["decoder", "encoder", r".*\.w"], NAMES, "keys") == NAMES
    assert matching_names(r"encoder\.\w+", NAMES, "keys") == NAMES[:2]
    assert matching_names(r"encoder\.\w+", NAMES, "keys", whole=True) == NAMES[:1]


@pytest.mark.parametrize(
    ("patterns", "text"),
    [("norm", "the pattern 'norm' matches none of the 3"), ("(", "'\\(' is not a regular")],
)
def test_mistakes_name_the_id(patterns: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"keys: {text}"):
        matching_names(patterns, NAMES, "keys")
    with pytest.raises(ConfigError, match=f"local_keys: {text}"):
        SharedKeys(local=patterns).split(NAMES)


def test_one_several_or_none() -> None:
    assert [as_list(value) for value in (None, "ab", ("a", "b"), [1], 1)] == [[], ["ab"], ["a", "b"], [1], [1]]


def test_values_in_messages_stay_short_and_printable() -> None:
    assert shown(10**5000) == "a number of 16610 bits"
    assert shown("a\x1b[31m\n" + "b" * 500) == "'a [31m " + "b" * 73 + "'"
    assert [shown(value) for value in ([["x"] * 9], None, 1.5, True)] == ["a list", "None", "1.5", "True"]
    assert first_line(ValueError("one\ntwo")) == "one" and first_line(ValueError()) == "ValueError"
