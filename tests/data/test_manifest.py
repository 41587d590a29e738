# SPDX-License-Identifier: Apache-2.0
"""Manifests: hashes of every file, an overlap check by subject and by content, atomic writing."""

from __future__ import annotations

import hashlib
import json

import h5py
import pytest
from monai.data import load_decathlon_datalist

from fedmonai.data.kspace.list import kspace_volumes
from fedmonai.data.provenance import check_overlap, read_manifest, verify_manifest, write_manifest
from fedmonai.errors import ConfigError


@pytest.fixture
def site(tmp_path, make_volume):
    for seed, name in enumerate("abcd"):
        make_volume(tmp_path / f"{name}.h5", (2, 4, 4), (4, 4), seed=seed)
    return tmp_path


def _splits(train, test):
    return {
        "train": [{"kspace": f"{name}.h5", "subject": subject} for name, subject in train],
        "test": [{"kspace": f"{name}.h5", "subject": subject} for name, subject in test],
    }


def test_manifest_is_a_data_list_with_hashes(site):
    path = write_manifest(site, _splits([("a", "s1"), ("b", "s1")], [("c", "s2")]), seed=3)
    assert path == site / "manifest.json"
    manifest = read_manifest(site)
    entry = manifest["training"][0]
    assert entry["sha256"] == {"kspace": hashlib.sha256((site / "a.h5").read_bytes()).hexdigest()}
    with h5py.File(site / "a.h5") as file:
        expected = hashlib.sha256(b"(2, 4, 4)" + file["kspace"][()].tobytes()).hexdigest()
    assert entry["content"] == expected
    assert (manifest["seed"], manifest["subject_wise"], manifest["validation"]) == (3, True, [])
    assert [v["volume"] for v in kspace_volumes(site, "train", data_list=path)] == ["a", "b"]
    assert len(load_decathlon_datalist(str(path), data_list_key="training")) == 2
    assert verify_manifest(site) == []


def test_changed_and_missing_files_are_found(site, make_volume):
    write_manifest(site, _splits([("a", "s1"), ("b", "s2")], [("c", "s3")]))
    make_volume(site / "a.h5", (2, 4, 4), (4, 4), seed=77)
    (site / "b.h5").unlink()
    problems = verify_manifest(site)
    assert len(problems) == 2
    assert problems[0] == "a.h5 has changed since the manifest was written." and "'b.h5' is not a file" in problems[1]


def test_subject_in_two_splits_is_refused_and_nothing_is_written(site):
    with pytest.raises(ConfigError, match=r"'b\.h5' in train and 'c\.h5' in test are of one subject \(s1\)"):
        write_manifest(site, _splits([("a", "s0"), ("b", "s1")], [("c", "s1")]))
    assert not (site / "manifest.json").exists()


def test_same_data_under_another_subject_is_refused(site):
    with h5py.File(site / "a.h5") as old, h5py.File(site / "d.h5", "w") as new:
        new["kspace"] = old["kspace"][()]
        new.attrs["patient_id"] = "someone else"
    with pytest.raises(ConfigError, match=r"'a\.h5' in train and 'd\.h5' in test hold the same image data"):
        write_manifest(site, _splits([("a", "s1")], [("d", "s2")]))


def test_blocks_of_one_subject_may_be_apart_but_not_next_to_the_whole(site):
    write_manifest(site, _splits([("a", "s1")], [("b", "s1")]), subject_wise=False)
    check_overlap(read_manifest(site))
    mixed = _splits([("a", "s1")], [("b", "s1")])
    mixed["train"][0]["subject_wise"] = False
    with pytest.raises(ConfigError, match=r"one subject \(s1\)"):
        write_manifest(site, mixed)
    with pytest.raises(ConfigError, match="the same image data"):
        write_manifest(site, _splits([("a", "s1")], [("a", "s1")]), subject_wise=False)


def test_overlap_between_sites(site):
    one = {"site": "B", "training": [{"kspace": "a.h5", "subject": "s1", "content": "x"}]}
    two = {"site": "F", "test": [{"kspace": "b.h5", "subject": "s2", "content": "x"}]}
    with pytest.raises(ConfigError, match=r"'B, a\.h5' in train and 'F, b\.h5' in test"):
        check_overlap(one, two)
    two["test"][0]["content"] = "y"
    check_overlap(one, two)
    check_overlap(one, {**one, "site": "F"})  # the same split twice is no leak


def test_images_and_labels(tmp_path):
    for name in ("i0", "l0", "i1", "l1"):
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    entries = [{"image": f"i{k}.png", "label": f"l{k}.png", "subject": f"s{k}"} for k in (0, 1)]
    write_manifest(tmp_path, {"train": entries[:1], "val": entries[1:]}, keys=("image", "label"))
    entry = read_manifest(tmp_path)["validation"][0]
    assert entry["sha256"]["label"] == hashlib.sha256(b"l1").hexdigest()
    assert entry["content"] == entry["sha256"]["image"]


@pytest.mark.parametrize(
    ("splits", "reason"),
    [
        ({"training": []}, "training unknown"),
        ({"train": [{"kspace": "a.h5"}]}, "no subject"),
        ({"train": [{"kspace": "../a.h5", "subject": "s"}]}, "leads out of"),
        ({"train": [{"kspace": "none.h5", "subject": "s"}]}, "not a file"),
    ],
)
def test_wrong_entries(site, splits, reason):
    with pytest.raises(ConfigError, match=reason):
        write_manifest(site, splits)


def test_list_without_hashes_is_no_manifest(site):
    (site / "manifest.json").write_text(json.dumps({"training": [{"kspace": "a.h5", "subject": "s"}]}))
    with pytest.raises(ConfigError, match="entry 0 of 'training' has no sha256"):
        read_manifest(site)
