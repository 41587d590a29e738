# SPDX-License-Identifier: Apache-2.0
"""Names chosen by patterns, arguments that are one or several, values in messages."""

from __future__ import annotations

import pytest

from fedmonai.errors import ConfigError, first_line
from fedmonai.federated.messages import SharedKeys
from fedmonai.names import as_list, compiled_patterns, matching_names, shown

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


@pytest.mark.parametrize(
    "pattern",
    [
        "(.*)*(.*)*!",
        "(a+)+!",
        "(a|aa)+!",
        "(?:a*){9}!",
        "(a?){2,}!",
        ".*.*.*.*.*.*!",
        "a{0,9}a{0,9}a{0,9}!",
        "a?" * 40 + "a" * 40,
        "(a|aa)" * 30 + "!",
        "(?=.*)a",
        "(?i)a",
        "(?P<x>a)",
        r"(a)\1",
        "a" * 201,
    ],
)
def test_patterns_that_could_take_for_ever_are_refused(pattern: str) -> None:
    """Each is refused before it is tried; most of them would not end on forty letters."""
    with pytest.raises(ConfigError, match=r"keys: .*; give several simple patterns") as caught:
        matching_names([pattern], ["a" * 40], "keys")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "pattern", [r"(.*\.)?(down\.\d+|bottleneck|conv)\.[15]\.", r".*\.norm[12]\.", r"a\{3}[(*)+]{2}|(b|c)?d", "x" * 200]
)
def test_simple_patterns_are_taken(pattern: str) -> None:
    assert compiled_patterns([pattern], "keys")[0].pattern == pattern


def test_one_several_or_none() -> None:
    assert [as_list(value) for value in (None, "ab", ("a", "b"), [1], 1)] == [[], ["ab"], ["a", "b"], [1], [1]]


def test_values_in_messages_stay_short_and_printable() -> None:
    assert shown(10**5000) == "a number of 16610 bits"
    assert shown("a\x1b[31m\n" + "b" * 500) == "'a [31m " + "b" * 73 + "'"
    assert [shown(value) for value in ([["x"] * 9], None, 1.5, True)] == ["a list", "None", "1.5", "True"]
    assert first_line(ValueError("one\ntwo")) == "one" and first_line(ValueError()) == "ValueError"
