# SPDX-License-Identifier: Apache-2.0
"""Which volume, or which block of its slices, goes to which split; and what sources and subjects are called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedmonai.data.convert.plan import Part, SplitPlan, Written
from fedmonai.data.convert.scan import Naming, find_sources
from fedmonai.data.convert.volume import Source
from fedmonai.data.damage import InputError
from fedmonai.errors import ConfigError


def _source(subject, name="v"):
    return Source("nifti", name, (Path(name),), subject, name)


def _written(subject, split, block=None):
    return Written(f"{split}/x.h5", split, None, subject, "", block, 3)


@pytest.mark.parametrize(
    ("option", "plan"),
    [
        ("val", SplitPlan(fixed="val")),
        ("0.6,0.2,0.2", SplitPlan(split_fractions=(0.6, 0.2, 0.2))),
        ((0.6, 0.2, 0.2), SplitPlan(split_fractions=(0.6, 0.2, 0.2))),
        ((1, 0, 0), SplitPlan(split_fractions=(1.0, 0.0, 0.0))),
        ("slices:38,6,10", SplitPlan(blocks=(38.0, 6.0, 10.0))),
        ("slices:0.5,0.25,0.25", SplitPlan(blocks=(0.5, 0.25, 0.25))),
    ],
)
def test_options(option, plan):
    assert SplitPlan.parse(option) == plan


@pytest.mark.parametrize(
    "option", ["training", "1,2", "slices:1,2", "slices:-1,2,3", "slices:0,0,0", "a,b,c", "1,1,1", 3]
)
def test_wrong_options(option):
    with pytest.raises(ConfigError, match="split: "):
        SplitPlan.parse(option)


def test_blocks_do_not_overlap_and_cover():
    parts = SplitPlan.parse("slices:38,6,10").parts(_source("s"), 54, {})
    assert parts == [Part("train", "v_train", 0, 38), Part("val", "v_val", 38, 44), Part("test", "v_test", 44, 54)]
    assert SplitPlan.parse("slices:11,0,3").parts(_source("s"), 14, {}) == [
        Part("train", "v_train", 0, 11),
        Part("test", "v_test", 11, 14),
    ]
    parts = SplitPlan.parse("slices:0.5,0.25,0.25").parts(_source("s"), 9, {})
    assert [(part.first, part.last) for part in parts] == [(0, 5), (5, 7), (7, 9)]


@pytest.mark.parametrize(("option", "slices"), [("slices:38,6,10", 53), ("slices:0.5,0.25,0.25", 2)])
def test_too_few_slices(option, slices):
    with pytest.raises(InputError, match=f"{slices} slices cannot be split"):
        SplitPlan.parse(option).parts(_source("s"), slices, {})


def test_subjects_of_an_earlier_run():
    sources = [_source(f"s{k}") for k in range(4)]
    earlier = [_written("s1", "test")]
    assert SplitPlan.parse("0.5,0.25,0.25").assign(sources, 0, earlier)["s1"] == "test"
    assert SplitPlan.parse("test").assign(sources, 0, earlier) == dict.fromkeys(["s0", "s1", "s2", "s3"], "test")
    with pytest.raises(ConfigError, match=r"overlap: subject s1 is in 'test' .* would be in 'train' too"):
        SplitPlan.parse("train").assign(sources, 0, earlier)
    with pytest.raises(ConfigError, match="overlap: subject s1"):
        SplitPlan.parse("slices:1,1,1").assign(sources, 0, earlier)
    with pytest.raises(ConfigError, match="overlap: subject s1"):
        SplitPlan.parse("0.5,0.25,0.25").assign(sources, 0, [_written("s1", "train", [0, 2])])
    assert SplitPlan.parse("slices:1,1,1").assign(sources, 0, [_written("s1", "train", [0, 2])]) == {}


@pytest.fixture
def tree(tmp_path, make_series, make_volume):
    root = tmp_path / "Doe Jane"
    make_series(root / "scan1", 2, series="1.2.3")
    make_series(root / "scan2", 2, series="1.2.4", PatientID="***", seed=1)
    (root / "scan1" / "im000.dcm").rename(root / "scan1" / "IM000")  # without suffix, found by its prefix
    (root / "sub-07").mkdir()
    np.save(root / "sub-07" / "sub-07_T1 w.npy", np.ones((2, 4, 4)))
    make_volume(root / "f" / "brain.h5", patient_id="P1")
    for name in ("notes.txt", "DICOMDIR", ".DS_Store", "photo.jpg"):
        (root / name).write_text("x" * 200)
    return root


def test_sources_kinds_and_subjects(tree):
    found = find_sources(tree, Naming())
    kinds = {source.kind: source for source in found.sources}
    assert sorted(source.kind for source in found.sources) == ["array", "dicom", "dicom", "hdf5"]
    pseudonym = Naming().pseudonym
    assert kinds["array"].subject == f"sub-{pseudonym('sub-07')}" and kinds["array"].name == "sub-07_T1_w"
    assert kinds["hdf5"].subject == f"sub-{pseudonym('P1')}"
    dicom = [source for source in found.sources if source.kind == "dicom"]
    assert {source.subject for source in dicom} == {f"sub-{pseudonym('HOSPITAL-4711')}", f"sub-{pseudonym('1.2.4.0')}"}
    assert [len(source.notes) for source in sorted(dicom, key=lambda source: source.label)] == [0, 1]
    assert not any("Doe" in source.name + source.subject for source in found.sources)
    assert found.ignored == ["DICOMDIR", "notes.txt"]
    assert [label for label, _ in found.failed] == ["photo.jpg"]


def test_salt_changes_pseudonyms():
    assert Naming(salt="x").pseudonym("1") != Naming().pseudonym("1") != Naming().pseudonym("2")


def test_subject_rules(tmp_path):
    for name in ("a/IXI012-Guys-T1.npy", "a/IXI013-Guys-T1.npy", "b/IXI012-Guys-T2.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, np.ones((4, 4)))

    def groups(rule):
        return len({source.subject for source in find_sources(tmp_path, Naming(rule)).sources})

    assert (groups("auto"), groups("file"), groups("folder"), groups(r"IXI\d+"), groups(r"(IXI)\d")) == (2, 3, 2, 2, 1)
    found = find_sources(tmp_path, Naming(r"-(T2)"))
    assert len(found.sources) == 1 and "finds nothing" in found.failed[0][1]
    with pytest.raises(ConfigError, match="not a regular expression"):
        find_sources(tmp_path, Naming("("))


def test_files_of_one_name_get_their_folder(tmp_path):
    for folder in ("p1", "p2"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "t1.npy", np.ones((4, 4)))
    assert [source.name for source in find_sources(tmp_path, Naming()).sources] == ["p1_t1", "p2_t1"]
    hashed = find_sources(tmp_path, Naming(hash_names=True)).sources
    assert len({source.name for source in hashed}) == 2 and not any("t1" in source.name for source in hashed)


def test_missing_input(tmp_path):
    with pytest.raises(ConfigError, match=r"input: .*none does not exist"):
        find_sources(tmp_path / "none", Naming())


def test_a_series_may_be_spread_over_folders(tmp_path, make_slice):
    for k, folder in enumerate(("train", "test")):
        make_slice(tmp_path / "s" / folder / "a.dcm", np.zeros((6, 4)), z=float(k), number=k + 1)
    (source,) = find_sources(tmp_path, Naming()).sources
    assert len(source.files) == 2 and source.label.startswith("s, series")
