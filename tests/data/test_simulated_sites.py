# SPDX-License-Identifier: Apache-2.0
"""Simulated sites: by column, by share, by Dirichlet; subjects whole, no empty site."""

from __future__ import annotations

from collections import Counter

import pytest

from fedmonai.data.partition import sites_by_column, sites_by_dirichlet, sites_by_share, split_sites
from fedmonai.errors import ConfigError

ROWS = [
    {"subject": f"s{k}", "kspace": f"s{k}_{run}.h5", "scanner": "AB"[k % 2], "group": str(k % 3)}
    for k in range(30)
    for run in (0, 1)
]


def test_by_column():
    chosen = sites_by_column(ROWS, "scanner")
    assert chosen["s0"] == "A" and chosen["s1"] == "B" and Counter(chosen.values()) == {"A": 15, "B": 15}
    with pytest.raises(ConfigError, match="'vendor' is missing for subject s0"):
        sites_by_column(ROWS, "vendor")
    with pytest.raises(ConfigError, match="subject s0 has two values of 'kspace'"):
        sites_by_column(ROWS, "kspace")


def test_by_share():
    chosen = sites_by_share(ROWS, ["x", "y", "z"], [3, 2, 1], seed=4)
    assert Counter(chosen.values()) == {"x": 15, "y": 10, "z": 5}
    assert chosen == sites_by_share(ROWS[::-1], ["x", "y", "z"], [3, 2, 1], seed=4)
    assert chosen != sites_by_share(ROWS, ["x", "y", "z"], [3, 2, 1], seed=5)
    with pytest.raises(ConfigError, match="positive share"):
        sites_by_share(ROWS, ["x", "y"], [1, 0])


def test_dirichlet_separates_labels_when_alpha_is_small():
    def purity(alpha):
        """Mean over sites of the largest share of one label: 1/3 when mixed, 1 when separated."""
        chosen = sites_by_dirichlet(ROWS, ["x", "y", "z"], "group", alpha, 3, seed=0)
        labels = {row["subject"]: row["group"] for row in ROWS}
        parts = [Counter(labels[s] for s, site in chosen.items() if site == name) for name in "xyz"]
        assert sum(sum(part.values()) for part in parts) == 30
        return sum(max(part.values()) / sum(part.values()) for part in parts) / 3

    assert purity(1000.0) < 0.45 < 0.6 < purity(0.1)


def test_dirichlet_minimum():
    chosen = sites_by_dirichlet(ROWS, ["x", "y", "z"], "group", 0.2, 6, seed=1)
    assert min(Counter(chosen.values()).values()) >= 6
    with pytest.raises(ConfigError, match=r"none of 1000 draws .* each of 3 sites 11 of 30 subjects; raise alpha"):
        sites_by_dirichlet(ROWS, ["x", "y", "z"], "group", 0.2, 11)
    with pytest.raises(ConfigError, match="alpha: 0 is not positive"):
        sites_by_dirichlet(ROWS, ["x"], "group", 0, 1)


def test_splits_are_by_subject_inside_every_site():
    sites = split_sites(ROWS, sites_by_share(ROWS, ["x", "y"], [1, 1]), (0.6, 0.2, 0.2), seed=2)
    subjects = Counter()
    for splits in sites.values():
        assert [len(splits[name]) for name in ("train", "val", "test")] == [18, 6, 6]  # 9, 3, 3 subjects of 2 rows
        subjects.update({row["subject"] for rows in splits.values() for row in rows})
        assert sum(len({row["subject"] for row in rows}) for rows in splits.values()) == 15
    assert set(subjects.values()) == {1} and len(subjects) == 30


def test_a_sites_split_does_not_depend_on_the_other_sites():
    chosen = sites_by_column(ROWS, "scanner")
    alone = [row for row in ROWS if row["scanner"] == "A"]
    assert split_sites(ROWS, chosen, seed=7)["A"] == split_sites(alone, sites_by_column(alone, "scanner"), seed=7)["A"]


def test_kept_splits():
    rows = [dict(row, split="train" if row["subject"] != "s3" else "test") for row in ROWS]
    sites = split_sites(rows, sites_by_column(rows, "scanner"), "keep")
    assert [row["subject"] for row in sites["B"]["test"]] == ["s3", "s3"] and not sites["A"]["test"]
    with pytest.raises(ConfigError, match="split: subject s0 has split 'x'"):
        split_sites([dict(ROWS[0], split="x")], {"s0": "A"}, "keep")


def test_small_site_is_refused():
    rows = [*ROWS, {"subject": "lone", "kspace": "l.h5", "scanner": "C"}]
    with pytest.raises(ConfigError, match="site: C would have 1 subjects, needed are 3"):
        split_sites(rows, sites_by_column(rows, "scanner"))
    assert len(split_sites(rows, sites_by_column(rows, "scanner"), (1, 0, 0))["C"]["train"]) == 1


@pytest.mark.parametrize("site", ["../x", "a/b", "", ".hidden"])
def test_site_name_must_be_a_file_name(site):
    with pytest.raises(ConfigError, match="cannot be a file name"):
        split_sites(ROWS[:2], {"s0": site}, (1, 0, 0))
