# SPDX-License-Identifier: Apache-2.0
"""DICOM series: order, geometry, gaps, copies, and files that cannot be used."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from fedmonai.data.convert.dicom import read_series, read_slice_header
from fedmonai.data.damage import InputError


def test_sorted_by_position_with_rescale(tmp_path, make_slice):
    first, second = np.full((6, 4), 10), np.arange(24).reshape(6, 4)
    paths = [
        make_slice(tmp_path / "a.dcm", second, z=6.0, number=1, RescaleSlope=2.0, RescaleIntercept=1.0),
        make_slice(tmp_path / "b.dcm", first, z=4.0, number=2, RescaleSlope=2.0, RescaleIntercept=1.0),
    ]
    volume = read_series(paths)
    np.testing.assert_array_equal(volume.data, np.stack([first, second]) * 2 + 1)
    assert volume.positions.tolist() == [4.0, 6.0] and volume.warnings == ()


def test_affine_is_in_ras(tmp_path, make_series):
    """DICOM says x = -10 + 0.25 c, y = -20 + 0.5 r, z = 2 s in LPS; RAS has x and y negated."""
    volume = read_series(make_series(tmp_path, 5))
    for s, r, c in [(0, 0, 0), (1, 2, 3), (4, 5, 1)]:
        np.testing.assert_allclose(volume.affine @ [s, r, c, 1], [10 - 0.25 * c, 20 - 0.5 * r, 2 * s, 1])
    assert volume.spacing == pytest.approx((2.0, 0.5, 0.25))


def test_gaps_are_named(tmp_path, make_series):
    volume = read_series(make_series(tmp_path, 9, skip=(3, 6, 7)))
    assert len(volume.warnings) == 1
    assert volume.warnings[0].startswith("2 gaps, about 3 slices missing at 2 mm per slice")
    assert "im002.dcm at 4.0 mm and im004.dcm at 8.0 mm (1 missing)" in volume.warnings[0]
    assert "im005.dcm at 10.0 mm and im008.dcm at 16.0 mm (2 missing)" in volume.warnings[0]


def test_many_gaps_are_counted_not_listed(tmp_path, make_series):
    warning = read_series(make_series(tmp_path, 33, skip=tuple(range(1, 33, 2)))).warnings[0]
    assert warning.startswith("16 gaps") and warning.endswith("and 4 more") and len(warning) < 1200


@pytest.mark.parametrize(
    ("tags", "gap"),
    [
        ({"SliceThickness": 1.0}, False),  # 2 mm apart, numbered without a hole: 1 mm between slices is the protocol
        ({"SliceThickness": 1.0, "SpacingBetweenSlices": 1.0}, True),
        ({"SliceThickness": 4.0}, False),  # overlapping slices
        ({"SliceThickness": None}, False),
    ],
)
def test_expected_step(tmp_path, make_series, tags, gap):
    assert bool(read_series(make_series(tmp_path, 4, **tags)).warnings) == gap


def test_exact_copy_is_left_out_and_another_image_at_the_place_refused(tmp_path, make_series, make_slice):
    paths = make_series(tmp_path, 3)
    copy = tmp_path / "copy.dcm"
    copy.write_bytes(paths[1].read_bytes())
    volume = read_series([*paths, copy])
    assert volume.data.shape[0] == 3
    assert volume.warnings == ("duplicate slice left out: im001.dcm equals copy.dcm",)
    echo = make_slice(tmp_path / "echo.dcm", np.ones((6, 4)), z=2.0, number=9)
    with pytest.raises(InputError, match=r"different images at one position \(echo\.dcm, im001\.dcm\)"):
        read_series([*paths, echo])


def test_without_positions_the_instance_number_orders(tmp_path, make_series):
    volume = read_series(make_series(tmp_path, 3, ImagePositionPatient=None)[::-1])
    expected = read_series(make_series(tmp_path / "b", 3)).data
    np.testing.assert_array_equal(volume.data, expected)
    assert volume.affine is None and "geometry unknown" in volume.warnings[0]


def test_without_any_order(tmp_path, make_series):
    with pytest.raises(InputError, match="tells the order"):
        read_series(make_series(tmp_path, 2, ImagePositionPatient=None, InstanceNumber=None))


@pytest.mark.parametrize(
    ("tags", "pixels", "what"),
    [
        ({}, np.zeros((5, 4)), "rows"),
        ({"PixelSpacing": [1, 1]}, np.zeros((6, 4)), "spacing"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, 1]}, np.zeros((6, 4)), "orientation"),
    ],
)
def test_mixed_series(tmp_path, make_series, make_slice, tags, pixels, what):
    odd = make_slice(tmp_path / "odd.dcm", pixels, z=50.0, number=40, **tags)
    with pytest.raises(InputError, match=f"mixes images of different {what}"):
        read_series([*make_series(tmp_path, 2), odd])


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Modality": "CT"}, "modality CT, expected MR"),
        ({"NumberOfFrames": 30}, "multi-frame DICOM"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "MONOCHROME1 pixels"),
        ({"SeriesInstanceUID": None}, "without SeriesInstanceUID"),
    ],
)
def test_unusable_images(tmp_path, make_slice, tags, reason):
    with pytest.raises(InputError, match=reason):
        read_slice_header(make_slice(tmp_path / "a.dcm", np.zeros((6, 4)), **tags))


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_every_truncation_is_an_input_error(tmp_path, make_slice):
    whole = make_slice(tmp_path / "whole.dcm", np.arange(24).reshape(6, 4)).read_bytes()
    refused = 0
    for cut in range(0, len(whole), 16):
        path = tmp_path / "cut.dcm"
        path.write_bytes(whole[:cut])
        try:
            read_series([path])
        except InputError:
            refused += 1
    assert refused == len(range(0, len(whole), 16))


def test_missing_pixels_are_named(tmp_path, make_series):
    paths = make_series(tmp_path, 2)
    dataset = pydicom.dcmread(paths[1])
    del dataset.PixelData
    dataset.save_as(paths[1])
    with pytest.raises(InputError, match=r"im001\.dcm: pixel data cannot be read"):
        read_series(paths)


@pytest.mark.parametrize("value", [b"0.5", b"1\\2\\x3", b"nan\\0\\0"])
def test_damaged_numbers_are_named(tmp_path, make_slice, value):
    """The position's text is overwritten in the file, as a failing disk would do it."""
    path = make_slice(tmp_path / "a.dcm", np.zeros((6, 4)), ImagePositionPatient=["-11", "-22", "33"])
    blob = path.read_bytes()
    assert blob.count(b"-11\\-22\\33") == 1
    path.write_bytes(blob.replace(b"-11\\-22\\33", value.ljust(10)))
    with pytest.raises(InputError, match="damaged DICOM file"):
        read_slice_header(path)
