# SPDX-License-Identifier: Apache-2.0
"""Dealing subjects to train, val and test so that all images of one subject stay together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fedmonai.data.volume_list import SECTIONS
from fedmonai.errors import ConfigError

SPLITS = tuple(SECTIONS)


def check_shares(shares: Sequence[float], name: str = "split") -> tuple[float, ...]:
    """Return (train, val, test) shares as floats.

    Raises:
        ConfigError: not three numbers >= 0 that sum to 1.
    """
    try:
        values = tuple(float(share) for share in shares)
    except (TypeError, ValueError):
        values = ()
    if len(values) != len(SPLITS) or min(values) < 0 or abs(sum(values) - 1) > 1e-6:
        raise ConfigError(
            f"{name}: {shares} is not three shares (train,val,test) that sum to 1, such as 0.7,0.15,0.15."
        )
    return values


def split_subjects(
    subjects: Iterable[str],
    shares: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int | Sequence[int] = 0,
    fixed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Assign every subject to one split, at random but reproducibly.

    The counts are the shares rounded by largest remainder, with at least one subject in every split whose share is not
    zero. The result depends on the set of subjects and the seed, not on their order.

    Args:
        subjects: ids; repetitions count once.
        shares: of train, val and test; a share of 0 leaves a split out.
        seed: of the permutation.
        fixed: subjects that have a split already (an earlier run): they keep it, the others fill what is missing. For
            an unchanged set of subjects the result is that of a run without ``fixed``.

    Raises:
        ConfigError: fewer subjects than splits to fill, or wrong shares.
    """
    shares = check_shares(shares)
    names = sorted(set(subjects))
    wanted = dict(zip(SPLITS, share_counts(len(names), shares), strict=True))
    known = {name: fixed[name] for name in names if fixed and name in fixed}
    dealt = _deal(names, wanted, seed)
    if any(dealt[name] != split for name, split in known.items()):  # the subjects were others when the split was made
        free = [name for name in names if name not in known]
        dealt = known | _deal(free, _missing(wanted, known, len(free)), seed)
    return {name: dealt[name] for name in names}


def _deal(names: Sequence[str], wanted: Mapping[str, int], seed: int | Sequence[int]) -> dict[str, str]:
    order = [names[index] for index in np.random.RandomState(seed).permutation(len(names))]
    dealt: dict[str, str] = {}
    for split, count in wanted.items():
        dealt |= dict.fromkeys(order[:count], split)
        order = order[count:]
    return dealt


def _missing(wanted: Mapping[str, int], known: Mapping[str, str], free: int) -> dict[str, int]:
    """How many of ``free`` subjects each split still needs."""
    missing = dict(wanted)
    for split in known.values():
        missing[split] = max(0, missing[split] - 1)
    while sum(missing.values()) > free:  # some split has more than its share already
        missing[max(reversed(SPLITS), key=lambda split: missing[split])] -= 1
    return missing


def share_counts(total: int, shares: Sequence[float]) -> list[int]:
    """``total`` in parts by ``shares``, largest remainder first, at least 1 for every share that is not zero.

    Raises:
        ConfigError: fewer than one for each such share.
    """
    filled = [share > 0 for share in shares]
    if total < sum(filled):
        raise ConfigError(
            f"split: {total} subject(s) cannot fill {sum(filled)} splits; set shares to 0 (1,0,0), use "
            "split: train, or split one subject by blocks of slices (split: slices:0.7,0.15,0.15)."
        )
    counts = [max(int(positive), int(total * share)) for share, positive in zip(shares, filled, strict=True)]
    excess = [count - total * share for count, share in zip(counts, shares, strict=True)]
    while sum(counts) != total:
        step = 1 if sum(counts) < total else -1
        open_splits = [i for i, positive in enumerate(filled) if positive and (step > 0 or counts[i] > 1)]
        chosen = min(open_splits, key=lambda i: (step * excess[i], i))
        counts[chosen] += step
        excess[chosen] += step
    return counts
