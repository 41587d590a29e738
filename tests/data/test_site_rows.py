# SPDX-License-Identifier: Apache-2.0
"""Rows from lists and folders, and the manifests of simulated sites end to end."""

from __future__ import annotations

import json

import pytest

from fedmonai.data.kspace.list import kspace_volumes
from fedmonai.data.partition import read_rows, rows_from_layout, simulate_sites
from fedmonai.data.provenance import check_overlap, read_manifest
from fedmonai.errors import ConfigError


@pytest.fixture
def dataset(tmp_path, make_volume):
    for k in range(12):
        split = "train" if k < 8 else "test"
        make_volume(tmp_path / "big" / "T1" / split / f"v{k}.h5", (1, 4, 4), None, seed=k, patient_id=f"sub-{k // 2}")
    return tmp_path / "big"


def test_rows_of_a_layout(dataset):
    rows = rows_from_layout(dataset, "T1")
    assert len(rows) == 12
    assert rows[3] == {"kspace": "T1/train/v3.h5", "subject": "sub-1", "split": "train", "sequence": "T1"}
    with pytest.raises(ConfigError, match=r"dataset_dir: no .*big/<train\|val\|test>"):
        rows_from_layout(dataset)


def test_rows_of_lists(tmp_path):
    (tmp_path / "a.csv").write_text("kspace,patient,vendor\nx.h5,7,S\ny.h5,8,G\n")
    assert read_rows(tmp_path / "a.csv", "patient")[1] == {
        "kspace": "y.h5",
        "patient": "8",
        "vendor": "G",
        "subject": "8",
    }
    (tmp_path / "b.json").write_text('[{"kspace": "x.h5", "subject": 3}]')
    assert read_rows(tmp_path / "b.json") == [{"kspace": "x.h5", "subject": "3"}]
    (tmp_path / "c.json").write_text('{"training": [{"kspace": "x.h5", "subject": "s"}], "test": []}')
    assert read_rows(tmp_path / "c.json") == [{"kspace": "x.h5", "subject": "s", "split": "train"}]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.csv", "kspace\nx.h5\n", "row 1 of .* has no 'subject'"),
        ("a.csv", "subject,kspace\n", "has no rows"),
        ("a.json", "{", "cannot be read as JSON"),
        ("a.json", "[1]", "data_list"),
        ("none.csv", None, "cannot be read as CSV"),
    ],
)
def test_wrong_lists(tmp_path, name, text, reason):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_rows(tmp_path / name)


def test_sites_by_share_become_data_lists(dataset, tmp_path):
    paths = simulate_sites(str(dataset), str(tmp_path / "out"), sites=2, sequence="T1")
    assert [path.name for path in paths] == ["site1.json", "site2.json"]
    manifests = [read_manifest(path) for path in paths]
    check_overlap(*manifests)
    found = set()
    for path, manifest in zip(paths, manifests, strict=True):
        assert (manifest["by"], manifest["site"]) == ("share", path.stem)
        for split in ("train", "val", "test"):  # 3 subjects of 2 volumes each per site: one per split
            volumes = kspace_volumes(dataset, split, "T1", data_list=path)
            assert len(volumes) == 2
            found.update(volume["volume"] for volume in volumes)
    assert found == {f"v{k}" for k in range(12)}


def test_sites_by_column_and_dirichlet(dataset, tmp_path):
    rows = [
        {"kspace": f"T1/{'train' if k < 8 else 'test'}/v{k}.h5", "id": f"p{k}", "site": "AB"[k % 2]} for k in range(12)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    options = {"rows": str(tmp_path / "rows.json"), "subject": "id"}
    paths = simulate_sites(str(dataset), str(tmp_path / "col"), by="column", **options)
    assert [path.name for path in paths] == ["A.json", "B.json"]
    paths = simulate_sites(
        str(dataset), str(tmp_path / "dir"), by="dirichlet", sites="x,y", label="site", alpha=1.0, **options
    )
    assert [path.name for path in paths] == ["x.json", "y.json"]
    assert sum(len(read_manifest(path)[part]) for path in paths for part in ("training", "validation", "test")) == 12


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"by": "magic"}, "by: 'magic' is unknown"),
        ({"sites": 3}, "would have 2 subjects, needed are 3"),
        ({"sites": 8, "split": (1, 0, 0)}, "would be empty"),
        ({"split": (1, 1, 1)}, "three fractions"),
    ],
)
def test_nothing_is_written_for_impossible_sites(dataset, tmp_path, options, reason):
    with pytest.raises(ConfigError, match=reason):
        simulate_sites(str(dataset), str(tmp_path / "out"), sequence="T1", **options)
    assert not (tmp_path / "out").exists()
