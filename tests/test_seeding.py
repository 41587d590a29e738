# SPDX-License-Identifier: Apache-2.0
"""Streams: their state is SHA-256 of the key, so it is the same for everybody and other for every key."""

from __future__ import annotations

import hashlib

import numpy as np

from fedmonai.seeding import stream


def test_the_state_is_the_digest_of_the_key() -> None:
    digest = hashlib.sha256(b"0\x1fB\x1ftrain\x1f3").digest()
    words = [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 32, 4)]
    expected = np.random.RandomState(words).standard_normal(5)
    np.testing.assert_array_equal(stream(0, "B", "train", 3).standard_normal(5), expected)


def test_keys_that_join_to_the_same_text_differ() -> None:
    assert stream("B1", 2).randint(2**31) != stream("B", 12).randint(2**31)


def test_the_global_generator_is_untouched() -> None:
    before = np.random.get_state()[1].copy()
    stream(1).standard_normal(100)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
