# SPDX-License-Identifier: Apache-2.0
"""Partition of subjects: into train, val and test, and of one dataset into simulated sites."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedmonai.data.kspace.list import SECTIONS, kspace_volumes, read_data_list
from fedmonai.data.kspace.read import open_volume, subject_of
from fedmonai.data.provenance import write_manifest
from fedmonai.errors import ConfigError, first_line

SPLITS = tuple(SECTIONS)


def check_fractions(split_fractions: Sequence[float], name: str = "split") -> tuple[float, ...]:
    """Return (train, val, test) fractions as floats.

    Raises:
        ConfigError: not three numbers >= 0 that sum to 1.
    """
    try:
        values = tuple(float(share) for share in split_fractions)
    except (TypeError, ValueError):
        values = ()
    if len(values) != len(SPLITS) or min(values) < 0 or abs(sum(values) - 1) > 1e-6:
        raise ConfigError(
            f"{name}: {split_fractions} is not three fractions (train,val,test) that sum to 1, such as 0.7,0.15,0.15."
        )
    return values


def split_subjects(
    subjects: Iterable[str],
    split_fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int | Sequence[int] = 0,
    fixed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Assign every subject to one split, at random but reproducibly.

    The counts are the fractions rounded by largest remainder, with at least one subject in every split whose one is not
    zero. The result depends on the set of subjects and the seed, not on their order.

    >>> split = split_subjects([f"s{k}" for k in range(10)])
    >>> sorted(split.values()).count("train")
    7

    Args:
        subjects: ids; repetitions count once.
        split_fractions: of train, val and test; 0 leaves a split out.
        seed: of the permutation.
        fixed: subjects that have a split already (an earlier run): they keep it, the others fill what is missing. For
            an unchanged set of subjects the result is that of a run without ``fixed``.

    Raises:
        ConfigError: fewer subjects than splits to fill, or wrong fractions.
    """
    split_fractions = check_fractions(split_fractions)
    names = sorted(set(subjects))
    wanted = dict(zip(SPLITS, fraction_counts(len(names), split_fractions), strict=True))
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


def fraction_counts(total: int, split_fractions: Sequence[float]) -> list[int]:
    """``total`` in parts by ``split_fractions``, largest remainder first, at least 1 for every one that is not zero.

    Raises:
        ConfigError: fewer than one for each such share.
    """
    filled = [share > 0 for share in split_fractions]
    if total < sum(filled):
        raise ConfigError(
            f"split: {total} subject(s) cannot fill {sum(filled)} splits; give fraction 0 to those that stay "
            "empty, as in 1,0,0."
        )
    counts = [max(int(positive), int(total * share)) for share, positive in zip(split_fractions, filled, strict=True)]
    excess = [count - total * share for count, share in zip(counts, split_fractions, strict=True)]
    while sum(counts) != total:
        step = 1 if sum(counts) < total else -1
        open_splits = [i for i, positive in enumerate(filled) if positive and (step > 0 or counts[i] > 1)]
        chosen = min(open_splits, key=lambda i: (step * excess[i], i))
        counts[chosen] += step
        excess[chosen] += step
    return counts


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
        split: fractions of train, val and test, or ``"keep"`` to take each row's own ``split`` field.
        min_subjects: refuse a site with fewer; default: one per split that has a share.
        seed: a site's split depends on it and on the site's own subjects only.

    Returns:
        ``{site: {"train": rows, "val": rows, "test": rows}}`` in the order of ``rows``.

    Raises:
        ConfigError: a site with too few subjects, a name that cannot be a file name, a row without a split to keep.
    """
    keep = split == "keep"
    split_fractions = (1.0, 0.0, 0.0) if keep else check_fractions(split)  # type: ignore[arg-type]
    least = sum(share > 0 for share in split_fractions) if min_subjects is None else min_subjects
    members: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        members[sites[row["subject"]]].append(row)
    for site in sorted(set(sites.values())):
        _check_site(site, {row["subject"] for row in members[site]}, max(1, least))
    out = {}
    for site in sorted(members):
        subjects = [row["subject"] for row in members[site]]
        own = _kept_splits(members[site]) if keep else split_subjects(subjects, split_fractions, seed)
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
            "other shares, or a split with fractions of 0."
        )


def _kept_splits(rows: Sequence[Row]) -> dict[str, str]:
    own = _value_of_subject(rows, "split")
    for subject, split in own.items():
        if split not in SPLITS:
            raise ConfigError(f"split: subject {subject} has split '{split}', allowed are {', '.join(SPLITS)}.")
    return own


PathLike = str | os.PathLike[str]


def read_rows(path: PathLike, subject: str = "subject") -> list[dict[str, Any]]:
    """Read a list of images: CSV with a header, JSON ``[{...}, ...]``, or a MONAI data list (section = ``split``).

    Args:
        path: ``.csv`` or ``.json``.
        subject: the column with the subject's id; it is copied to ``subject``.

    Raises:
        ConfigError: unreadable list, no rows, a row without subject.
    """
    path = Path(path)
    rows = _read_csv(path) if path.suffix.lower() == ".csv" else _read_json(path)
    if not rows:
        raise ConfigError(f"list: {path} has no rows.")
    for number, row in enumerate(rows, start=1):
        if row.get(subject) in (None, ""):
            raise ConfigError(f"list: row {number} of {path} has no '{subject}'; name the column with --subject.")
        row["subject"] = str(row[subject])
    return rows


def rows_from_layout(dataset_dir: PathLike, sequence: str | None = None) -> list[dict[str, Any]]:
    """List a prepared MR dataset: ``kspace`` (relative), ``subject`` (attribute ``patient_id``, else file), ``split``.

    Raises:
        ConfigError: no split folder with volumes, an unreadable file.
    """
    rows: list[dict[str, Any]] = []
    base = Path(dataset_dir)
    for split in SECTIONS:
        if not (base / (sequence or "") / split).is_dir():
            continue
        for volume in kspace_volumes(base, split, sequence):
            path = Path(volume["kspace"])
            with open_volume(path) as file:
                owner = subject_of(file) or path.stem
            row = {"kspace": path.relative_to(base).as_posix(), "subject": owner, "split": split}
            rows.append(row | ({"sequence": sequence} if sequence else {}))
    if not rows:
        raise ConfigError(f"dataset_dir: no {base}/{f'{sequence}/' if sequence else ''}<train|val|test>/*.h5.")
    return rows


def simulate_sites(
    dataset_dir: str,
    output: str | Path,
    by: str = "share",
    sites: int | str | Sequence[str] = 3,
    rows: str | Path | None = None,
    sequence: str | None = None,
    column: str = "site",
    shares: Sequence[float] | None = None,
    label: str = "label",
    alpha: float = 0.5,
    split: Sequence[float] | str = (0.7, 0.15, 0.15),
    min_subjects: int | None = None,
    subject: str = "subject",
    keys: str | Sequence[str] = "kspace",
    seed: int = 0,
) -> list[Path]:
    """Cut one dataset into simulated sites and write one data list with hashes per site, ``<output>/<site>.json``.

    Args:
        dataset_dir: folder the files lie in.
        output: folder for the lists; use one as ``data_list`` together with ``dataset_dir``.
        by: ``column`` (of the list), ``share`` (of the subjects), or ``dirichlet`` (label shift).
        sites: number of sites (site1, site2, ...) or their names; not used by ``column``.
        rows: CSV or JSON list of the images; without it the MR folder layout of ``dataset_dir`` is read.
        sequence: sub-folder of the layout, such as T1.
        column: whose values are the sites, for ``by: column``.
        shares: of the subjects per site, for ``by: share``; default equal.
        label: column with the label, for ``by: dirichlet``.
        alpha: concentration, for ``by: dirichlet``; small = labels separated.
        split: fractions of train, val and test within every site, by subject; ``keep`` takes the column ``split``.
        min_subjects: fewest subjects per site.
        subject: column with the subject's id.
        keys: columns that name files: kspace, or image,label.
        seed: of every random choice.

    Raises:
        ConfigError: see the functions this one calls; nothing is written then.
    """
    table = rows_from_layout(dataset_dir, sequence) if rows is None else read_rows(rows, subject)
    least = min_subjects
    if least is None:
        least = 1 if isinstance(split, str) else sum(float(share) > 0 for share in split)
    names = [f"site{k + 1}" for k in range(sites)] if isinstance(sites, int) else _column_names(sites)
    if by == "column":
        chosen = sites_by_column(table, column)
    elif by == "share":
        chosen = sites_by_share(table, names, shares or [1.0] * len(names), seed)
    elif by == "dirichlet":
        chosen = sites_by_dirichlet(table, names, label, alpha, least, seed)
    else:
        raise ConfigError(f"by: '{by}' is unknown; choose column, share or dirichlet.")
    expected = sorted(set(chosen.values())) if by == "column" else names
    empty = [name for name in expected if name not in chosen.values()]
    if empty:
        raise ConfigError(
            f"sites: {', '.join(empty)} would be empty ({len(chosen)} subjects); use fewer sites or other shares."
        )
    parts = split_sites(table, chosen, split, least, seed)
    return write_site_manifests(dataset_dir, output, parts, _column_names(keys), by=by, seed=seed)


def _column_names(value: str | Sequence[str]) -> list[str]:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else [str(part) for part in value]


def _read_csv(path: Path) -> list[dict[str, Any]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return [dict(row) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"list: {path} cannot be read as CSV ({error}).") from error


def _read_json(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"list: {path} cannot be read as JSON ({first_line(error, 120)}).") from error
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        return [dict(row) for row in content]
    sections = read_data_list(path)
    return [dict(row, split=split) for split, section in SECTIONS.items() for row in sections[section]]
