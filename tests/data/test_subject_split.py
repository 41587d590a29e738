# SPDX-License-Identifier: Apache-2.0
"""Subjects are dealt whole, in the asked fractions, the same way every time."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmonai.data.partition import fraction_counts, split_subjects
from fedmonai.errors import ConfigError


@pytest.mark.parametrize(
    ("total", "split_fractions", "counts"),
    [
        (20, (0.7, 0.15, 0.15), [14, 3, 3]),
        (10, (0.7, 0.15, 0.15), [7, 2, 1]),  # 7, 1.5, 1.5: the tie goes to val
        (3, (0.7, 0.15, 0.15), [1, 1, 1]),  # every split with a share gets one
        (4, (0.9, 0.05, 0.05), [2, 1, 1]),
        (5, (1, 0, 0), [5, 0, 0]),
        (5, (0.8, 0, 0.2), [4, 0, 1]),
        (100, (1 / 3, 1 / 3, 1 / 3), [34, 33, 33]),
    ],
)
def test_counts_by_largest_remainder(total, split_fractions, counts):
    assert fraction_counts(total, split_fractions) == counts


@given(st.integers(3, 60), st.tuples(*[st.integers(0, 20)] * 3).filter(any), st.integers(0, 99))
def test_every_subject_once_and_no_split_empty(total, weights, seed):
    split_fractions = tuple(weight / sum(weights) for weight in weights)
    split = split_subjects((f"s{k}" for k in range(total)), split_fractions, seed)
    counts = Counter(split.values())
    assert len(split) == total
    for name, share in zip(("train", "val", "test"), split_fractions, strict=True):
        assert (counts[name] > 0) == (share > 0)
        assert abs(counts[name] - share * total) < 3


def test_same_seed_same_split_whatever_the_order():
    names = [f"s{k}" for k in range(12)]
    assert split_subjects(names, seed=5) == split_subjects([*names[::-1], "s3"], seed=5)
    assert len({tuple(split_subjects(names, seed=seed).values()) for seed in range(6)}) > 1


def test_earlier_subjects_keep_their_split():
    first = split_subjects([f"s{k}" for k in range(6)], (0.5, 0.25, 0.25), seed=1)
    grown = split_subjects([f"s{k}" for k in range(16)], (0.5, 0.25, 0.25), seed=1, fixed=first)
    assert {name: grown[name] for name in first} == first
    assert Counter(grown.values()) == {"train": 8, "val": 4, "test": 4}
    skewed = split_subjects(["a", "b", "c", "d"], (0.5, 0.25, 0.25), fixed={"a": "test", "b": "test", "c": "test"})
    assert skewed["d"] == "train"


@pytest.mark.parametrize("split_fractions", [(0.5, 0.5), (0.5, 0.2, 0.2), (1.2, -0.1, -0.1), "abc", (1, 0, None)])
def test_wrong_fractions(split_fractions):
    with pytest.raises(ConfigError, match="three fractions"):
        split_subjects(["a", "b", "c"], split_fractions)


def test_too_few_subjects():
    with pytest.raises(ConfigError, match=r"2 subject\(s\) cannot fill 3 splits; give fraction 0 to those"):
        split_subjects(["a", "b"])


def test_repeating_a_run_with_what_it_wrote_gives_the_same():
    names = [f"s{k}" for k in range(9)]
    whole = split_subjects(names, seed=2)
    for written in ({}, {"s4": whole["s4"]}, dict(list(whole.items())[3:]), whole):
        assert split_subjects(names, seed=2, fixed=written) == whole
