# SPDX-License-Identifier: Apache-2.0
"""The rows that simulated sites are made of: from a CSV or JSON list, or from a prepared dataset."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedmonai.data.kspace_file import damage_named, open_volume, subject_of
from fedmonai.data.simulated_sites import (
    sites_by_column,
    sites_by_dirichlet,
    sites_by_share,
    split_sites,
    write_site_manifests,
)
from fedmonai.data.volume_list import SECTIONS, kspace_volumes, read_data_list
from fedmonai.errors import ConfigError

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
            with damage_named(path), open_volume(path) as file:
                owner = subject_of(file) or path.stem
            row = {"kspace": path.relative_to(base).as_posix(), "subject": owner, "split": split}
            rows.append(row | ({"sequence": sequence} if sequence else {}))
    if not rows:
        raise ConfigError(f"dataset_dir: no {base}/{f'{sequence}/' if sequence else ''}<train|val|test>/*.h5.")
    return rows


def simulate_sites(
    dataset_dir: str,
    output: str,
    by: str = "share",
    sites: int | str | Sequence[str] = 3,
    rows: str | None = None,
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
        split: shares of train, val and test within every site, by subject; ``keep`` takes the column ``split``.
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
    names = [f"site{k + 1}" for k in range(sites)] if isinstance(sites, int) else _names(sites)
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
    return write_site_manifests(dataset_dir, output, parts, _names(keys), by=by, seed=seed)


def _names(value: str | Sequence[str]) -> list[str]:
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
        raise ConfigError(f"list: {path} cannot be read as JSON ({str(error)[:120]}).") from error
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        return [dict(row) for row in content]
    sections = read_data_list(path)
    return [dict(row, split=split) for split, section in SECTIONS.items() for row in sections[section]]
