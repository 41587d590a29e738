# SPDX-License-Identifier: Apache-2.0
"""Volume lists from the folder layout and from JSON lists, and every mistake a user can make with them."""

from __future__ import annotations

import json

import pytest

from fedmonai.data.kspace.list import kspace_volumes, read_data_list
from fedmonai.errors import ConfigError


@pytest.fixture
def site(tmp_path, make_volume):
    for split, count in {"train": 10, "val": 2, "test": 3}.items():
        for k in range(count):
            make_volume(tmp_path / "B" / "T1" / split / f"{split}{k}.h5", (1, 4, 4), None)
    return tmp_path / "B"


def _list(path, **sections):
    path.write_text(json.dumps(sections))
    return path


def test_layout_with_and_without_sequence(site):
    expected = [{"kspace": str(site / "T1" / "val" / f"val{k}.h5"), "volume": f"val{k}"} for k in (0, 1)]
    assert kspace_volumes(site, "val", sequence="T1") == expected
    assert kspace_volumes(site / "T1", "val") == expected


def test_hidden_and_other_files_do_not_count(site):
    (site / "T1" / "val" / ".part-0a1b2c3d-val9.h5").touch()
    (site / "T1" / "val" / ".hidden.h5").touch()
    (site / "T1" / "val" / "notes.txt").touch()
    assert len(kspace_volumes(site, "val", "T1")) == 2


def test_sample_rate_is_a_seeded_share_of_volumes(site):
    def names(**options):
        return [volume["volume"] for volume in kspace_volumes(site, "train", "T1", **options)]

    assert len(names()) == 10
    some = names(sample_rate=0.3, seed=1)
    assert len(some) == 3 and some == sorted(some) and some == names(sample_rate=0.3, seed=1)
    assert len({tuple(names(sample_rate=0.3, seed=seed)) for seed in range(8)}) > 1
    assert len(names(sample_rate=0.01)) == 1


def test_pooled_folders_have_distinct_names_and_their_own_share(site, tmp_path, make_volume):
    for k in range(4):
        make_volume(tmp_path / "F" / "T1" / "train" / f"train{k}.h5", (1, 4, 4), None)
    pooled = kspace_volumes([site, tmp_path / "F"], "train", "T1", sample_rate=0.5)
    assert [volume["volume"][:2] for volume in pooled] == ["B_"] * 5 + ["F_"] * 2
    twice = kspace_volumes([site / "T1", tmp_path / "F" / "T1"], "train")
    assert len({volume["volume"] for volume in twice}) == 14
    assert twice[0]["volume"] == "T1-0_train0" and twice[-1]["volume"] == "T1-1_train3"


def test_missing_folder_names_id_folder_and_layout(tmp_path, site):
    with pytest.raises(ConfigError, match=r"dataset_dir: .*nowhere is not a folder; expected .*nowhere/.*train\|val"):
        kspace_volumes(tmp_path / "nowhere", "train")
    with pytest.raises(
        ConfigError, match=r"dataset_dir: no folder .*T2/train; expected .*T2/<train\|val\|test>/\*\.h5"
    ):
        kspace_volumes(site, "train", "T2")
    with pytest.raises(ConfigError, match=r"There is T1: set 'sequence'"):
        kspace_volumes(site, "train")


def test_empty_split(site):
    for path in (site / "T1" / "val").glob("*.h5"):
        path.unlink()
    with pytest.raises(ConfigError, match="dataset_dir: split 'val' is empty"):
        kspace_volumes(site, "val", "T1")


@pytest.mark.parametrize("rate", [0, -0.5, 1.01, float("nan")])
def test_sample_rate_outside_range(site, rate):
    with pytest.raises(ConfigError, match="sample_rate"):
        kspace_volumes(site, "train", "T1", sample_rate=rate)


def test_unknown_split(site):
    with pytest.raises(ConfigError, match="split: 'training' is unknown; choose one of train, val, test"):
        kspace_volumes(site, "training", "T1")


def test_data_list_in_the_form_of_monai(site, tmp_path):
    listed = _list(tmp_path / "list.json", training=[{"kspace": "T1/train/train3.h5"}, {"kspace": "T1/test/test0.h5"}])
    assert [volume["volume"] for volume in kspace_volumes(site, "train", data_list=listed)] == ["train3", "test0"]
    with pytest.raises(ConfigError, match=r"data_list: split 'val' \('validation'\) of .*list\.json is empty"):
        kspace_volumes(site, "val", data_list=listed)


def test_data_list_entries_of_another_sequence_are_left_out(site, tmp_path):
    entries = [{"kspace": "T1/train/train0.h5", "sequence": "T1"}, {"kspace": "T1/train/train1.h5", "sequence": "T2"}]
    listed = _list(tmp_path / "list.json", training=entries)
    assert [volume["volume"] for volume in kspace_volumes(site, "train", "T1", listed)] == ["train0"]
    assert len(kspace_volumes(site, "train", None, listed)) == 2


def test_data_list_cannot_leave_the_folder(site, tmp_path, make_volume):
    outside = make_volume(tmp_path / "outside.h5")
    (site / "link.h5").symlink_to(outside)
    (site / "linked_folder").symlink_to(tmp_path)
    for path in [
        "../outside.h5",
        str(outside),
        "T1/../../outside.h5",
        "link.h5",
        "linked_folder/outside.h5",
        "..\\o.h5",
    ]:
        with pytest.raises(ConfigError, match="leads out of"):
            kspace_volumes(site, "train", data_list=_list(tmp_path / "list.json", training=[{"kspace": path}]))


@pytest.mark.parametrize("entry", [{"kspace": "T1/none.h5"}, {"kspace": "T1"}, {"image": "a.h5"}, {"kspace": 3}])
def test_data_list_with_wrong_entry(site, tmp_path, entry):
    with pytest.raises(ConfigError, match=r"list\.json: .* is not a"):
        kspace_volumes(site, "train", data_list=_list(tmp_path / "list.json", training=[entry]))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"training": 3}', '{"training": ["a.h5"]}', "[" * 100000])
def test_data_list_of_wrong_form(tmp_path, text):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(ConfigError, match=r"data_list: .*list\.json"):
        read_data_list(tmp_path / "list.json")


def test_missing_data_list(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.json cannot be read"):
        read_data_list(tmp_path / "no.json")


def test_two_volumes_of_one_name(site, tmp_path, make_volume):
    make_volume(site / "T1" / "test" / "train0.h5", (1, 4, 4), None)
    entries = [{"kspace": "T1/train/train0.h5"}, {"kspace": "T1/test/train0.h5"}]
    for pair in (entries, entries[:1] * 2):
        with pytest.raises(ConfigError, match="share the name 'train0'"):
            kspace_volumes(site, "train", data_list=_list(tmp_path / "list.json", training=pair))


def test_as_many_lists_as_folders(site, tmp_path):
    listed = _list(tmp_path / "list.json", training=[{"kspace": "T1/train/train0.h5"}])
    with pytest.raises(ConfigError, match="one list per folder"):
        kspace_volumes([site, site], "train", data_list=listed)
