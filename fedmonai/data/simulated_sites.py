# SPDX-License-Identifier: Apache-2.0
"""One dataset cut into simulated sites, each with its own train, val and test subjects."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedmonai.data.manifest import write_manifest
from fedmonai.data.subject_split import SPLITS, check_shares, split_subjects
from fedmonai.errors import ConfigError

Row = Mapping[str, Any]
_ATTEMPTS = 1000  # draws of the Dirichlet distribution before giving up on the minimum per site


def sites_by_column(rows: Sequence[Row], column: str) -> dict[str, str]:
    """Subject to site, as a column of the list says (hospital, scanner, vendor).

    Raises:
        ConfigError: a row without that column, or a subject with two values.
    """
    return _value_of_subject(rows, column)


def sites_by_share(rows: Sequence[Row], sites: Sequence[str], shares: Sequence[float], seed: int = 0) -> dict[str, str]:
    """Subject to site, at random, site k receiving ``shares[k]`` of the subjects (shares are scaled to sum 1).

    Raises:
        ConfigError: as many shares as sites are needed, all positive.
    """
    if len(shares) != len(sites) or min(shares, default=0) <= 0:
        raise ConfigError(f"shares: {list(shares)} does not give {len(sites)} sites a positive share each.")
    subjects = _shuffled(rows, np.random.RandomState(seed))
    bounds = np.round(np.cumsum(shares) / np.sum(shares) * len(subjects)).astype(int)
    parts = np.split(np.array(subjects), bounds[:-1])
    return {str(subject): site for site, part in zip(sites, parts, strict=True) for subject in part}


def sites_by_dirichlet(
    rows: Sequence[Row], sites: Sequence[str], label: str, alpha: float, min_subjects: int, seed: int = 0
) -> dict[str, str]:
    """Subject to site with label shift: each label's subjects are dealt in proportions drawn from Dirichlet(alpha).

    Hsu, Qi, Brown, "Measuring the effects of non-identical data distribution for federated visual classification"
    (2019). A large ``alpha`` gives all sites the same mixture, a small one gives each label to few sites. Draws that
    leave a site with fewer than ``min_subjects`` are discarded.

    Raises:
        ConfigError: alpha <= 0, a subject with two labels, or no draw in 1000 that gives every site its minimum.
    """
    if not alpha > 0:
        raise ConfigError(f"alpha: {alpha} is not positive; 0.1 separates the labels strongly, 100 hardly.")
    labels = _value_of_subject(rows, label)
    rng = np.random.RandomState(seed)
    for _ in range(_ATTEMPTS):
        chosen: dict[str, str] = {}
        for value in sorted(set(labels.values())):
            subjects = rng.permutation(sorted(subject for subject, own in labels.items() if own == value))
            bounds = np.round(np.cumsum(rng.dirichlet([alpha] * len(sites))) * len(subjects)).astype(int)
            for site, part in zip(sites, np.split(subjects, bounds[:-1]), strict=True):
                chosen |= {str(subject): site for subject in part}
        counts = [list(chosen.values()).count(site) for site in sites]
        if min(counts) >= min_subjects:
            return chosen
    raise ConfigError(
        f"alpha: none of {_ATTEMPTS} draws with alpha {alpha} gave each of {len(sites)} sites {min_subjects} of "
        f"{len(labels)} subjects; raise alpha, or lower the number of sites or min_subjects."
    )


def split_sites(
    rows: Sequence[Row],
    sites: Mapping[str, str],
    split: Sequence[float] | str = (0.7, 0.15, 0.15),
    min_subjects: int | None = None,
    seed: int = 0,
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Split the subjects of every site into train, val and test.

    Args:
        rows: one dict per image with ``subject`` and its files.
        sites: subject to site, from one of the ``sites_by_...`` functions.
        split: shares, or ``"keep"`` to take each row's own ``split`` field.
        min_subjects: refuse a site with fewer; default: one per split that has a share.
        seed: a site's split depends on it and on the site's own subjects only.

    Returns:
        ``{site: {"train": rows, "val": rows, "test": rows}}`` in the order of ``rows``.

    Raises:
        ConfigError: a site with too few subjects, a name that cannot be a file name, a row without a split to keep.
    """
    keep = split == "keep"
    shares = (1.0, 0.0, 0.0) if keep else check_shares(split)  # type: ignore[arg-type]
    least = sum(share > 0 for share in shares) if min_subjects is None else min_subjects
    members: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        members[sites[row["subject"]]].append(row)
    for site in sorted(set(sites.values())):
        _check_site(site, {row["subject"] for row in members[site]}, max(1, least))
    out = {}
    for site in sorted(members):
        subjects = [row["subject"] for row in members[site]]
        own = _kept_splits(members[site]) if keep else split_subjects(subjects, shares, seed)
        out[site] = {name: [dict(row) for row in members[site] if own[row["subject"]] == name] for name in SPLITS}
    return out


def write_site_manifests(
    dataset_dir: str | os.PathLike[str],
    output: str | os.PathLike[str],
    sites: Mapping[str, Mapping[str, Sequence[Row]]],
    keys: Sequence[str] = ("kspace",),
    **info: Any,
) -> list[Path]:
    """Write ``<output>/<site>.json`` for every site: a data list for ``data_list``, with subjects and hashes."""
    return [
        write_manifest(dataset_dir, splits, Path(output) / f"{site}.json", keys, site=site, **info)
        for site, splits in sites.items()
    ]


def _value_of_subject(rows: Sequence[Row], column: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for row in rows:
        if row.get(column) in (None, ""):
            raise ConfigError(
                f"column: '{column}' is missing for subject {row['subject']}; found {', '.join(sorted(row))}."
            )
        known = values.setdefault(row["subject"], str(row[column]))
        if known != str(row[column]):
            raise ConfigError(
                f"column: subject {row['subject']} has two values of '{column}', {known} and {row[column]}; a subject "
                "belongs to one site only."
            )
    return values


def _shuffled(rows: Sequence[Row], rng: np.random.RandomState) -> list[str]:
    return [str(subject) for subject in rng.permutation(sorted({row["subject"] for row in rows}))]


def _check_site(site: str, subjects: set[str], least: int) -> None:
    if not re.fullmatch(r"[\w][\w.+-]*", site):
        raise ConfigError(f"site: '{site}' cannot be a file name; use letters, digits, '_', '-', '.' and '+'.")
    if len(subjects) < least:
        raise ConfigError(
            f"site: {site} would have {len(subjects)} subjects, needed are {least} (one per split); use fewer sites, "
            "other shares, or a split with shares of 0."
        )


def _kept_splits(rows: Sequence[Row]) -> dict[str, str]:
    own = _value_of_subject(rows, "split")
    for subject, split in own.items():
        if split not in SPLITS:
            raise ConfigError(f"split: subject {subject} has split '{split}', allowed are {', '.join(SPLITS)}.")
    return own
