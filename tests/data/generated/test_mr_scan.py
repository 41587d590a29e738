# SPDX-License-Identifier: Apache-2.0
"""A scan: signal, noise, point spread, phase and coils measured on the images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmonai.data.generated.brain import COARSE_STEP, Brain
from fedmonai.data.generated.mr_scan import Scan, magnitude_image, slice_heights
from fedmonai.data.generated.mr_sites import AVERAGE, SITES, SiteProfile, site_profile
from fedmonai.data.generated.mr_tissue import TISSUE_NAMES
from fedmonai.data.generated.shapes import SmoothGrid
from fedmonai.seeding import stream
from fedmonai.transforms.kspace import ifft2c

KEY = (0, "X", "train", 0)
IDEAL = replace(AVERAGE, bias=0.0, phase=0.0, snr=np.inf, gain=1.0)


def images(profile: SiteProfile, sequence: str = "T1", slices: int = 1, size: int = 96, coils: int = 1) -> np.ndarray:
    """Complex images (slices, coils, size, size)."""
    kspace = Scan(profile, sequence, KEY).kspace(slices, size, coils)
    assert kspace.dtype == np.complex64
    return ifft2c(torch.from_numpy(kspace)).numpy()


def tissue_mask(profile: SiteProfile, tissue: str, height: float, size: int) -> np.ndarray:
    """Pixels that hold one tissue only."""
    axis = ((np.arange(size) - size // 2) * profile.field_of_view / size).astype(np.float32)
    brain = Brain.draw(stream(*KEY, "subject"), profile.population)
    shares = brain.tissue(SmoothGrid(axis, axis, COARSE_STEP), height, profile.field_of_view / size, profile.stripped)
    return shares[TISSUE_NAMES.index(tissue)] > 0.97


def test_without_phase_and_noise_the_image_is_real_and_positive() -> None:
    image = images(IDEAL)
    assert np.abs(image.imag).max() < 1e-5 * image.real.max()
    assert image.real.min() > -0.1 * image.real.max()  # ringing only


@pytest.mark.parametrize("site", SITES)
def test_images_show_the_contrast_of_their_weighting(site: str) -> None:
    profile, size = site_profile(site), 128
    (height,) = slice_heights(1)
    means = {}
    for sequence in ("T1", "T2"):
        image = np.abs(images(profile, sequence, 1, size)[0, 0])
        for tissue in ("white", "gray", "csf"):
            mask = tissue_mask(profile, tissue, height, size)
            assert mask.sum() > 20
            means[sequence, tissue] = image[mask].mean()
    assert means["T1", "white"] > 1.08 * means["T1", "gray"] > 1.08 * means["T1", "csf"]
    assert means["T2", "csf"] > 1.08 * means["T2", "gray"] > 1.15 * means["T2", "white"]


@pytest.mark.parametrize("site", SITES)
def test_noise_has_the_level_of_the_site(site: str) -> None:
    """Real part in air: white-matter signal / snr, times the root of the window's mean square."""
    profile = site_profile(site)
    quiet = replace(profile, snr=np.inf)
    noise = images(profile) - images(quiet)
    share = np.mean(np.clip((profile.sharpness - np.abs(np.linspace(-1, 1, 2001))) / 0.08 + 1, 0, 1) > 0.5) ** 2
    white = Scan(profile, "T1", KEY)._white_signal() * profile.gain
    assert noise.real.std() == pytest.approx(white / profile.snr * np.sqrt(share), rel=0.06)
    assert noise.imag.std() == pytest.approx(noise.real.std(), rel=0.05)


def test_sites_are_ordered_by_their_noise() -> None:
    level = {}
    for site in SITES:
        image = np.abs(images(site_profile(site))[0, 0])
        level[site] = image[:6, :6].mean() / np.percentile(image, 85)  # air over brain
    assert level["B"] < level["I"] < level["F"] < level["H"]


def test_k_space_ends_where_the_site_stops_measuring() -> None:
    profile, size = replace(AVERAGE, sharpness=0.75), 64
    kspace = Scan(profile, "T1", KEY).kspace(1, size)[0, 0]
    radius = np.abs(np.arange(size) - size // 2) / (size / 2)
    outside = (radius[:, None] > 0.84) | (radius[None] > 0.84)  # 0.75 and the flank of 0.08
    assert np.all(kspace[outside] == 0)
    assert np.all(kspace[~(outside | (radius[:, None] > 0.82) | (radius[None] > 0.82))] != 0)


def test_a_larger_matrix_shows_the_same_head() -> None:
    small, large = images(IDEAL, size=64)[0, 0].real, images(IDEAL, size=128)[0, 0].real
    blocks = large.reshape(64, 2, 64, 2).mean((1, 3))
    blocks = 0.25 * sum(np.roll(large, shift, (0, 1)) for shift in ((0, 0), (1, 0), (0, 1), (1, 1)))[::2, ::2]
    assert np.corrcoef(small.ravel(), blocks.ravel())[0, 1] > 0.96
    assert small.mean() == pytest.approx(large.mean(), rel=0.01)


def test_the_phase_is_real_smooth_and_another_one_for_each_subject() -> None:
    profile = replace(SITES["F"], snr=np.inf)
    image = images(profile)[0, 0]
    head = np.abs(image) > 0.3 * np.percentile(np.abs(image), 95)
    assert 0.1 < (image.imag[head] ** 2).sum() / (np.abs(image[head]) ** 2).sum() < 0.9
    both = head[:, 1:] & head[:, :-1]
    steps = np.angle(image[:, 1:] * image[:, :-1].conj())[both]
    assert np.quantile(np.abs(steps), 0.95) < 0.8  # rad per pixel; nothing wraps within the head
    assert np.median(np.abs(steps)) > 0.005
    other = Scan(profile, "T1", (0, "X", "train", 1)).kspace(1, 96)[0, 0]
    assert np.abs(np.vdot(other, Scan(profile, "T1", KEY).kspace(1, 96)[0, 0])) < 0.9 * np.linalg.norm(other) ** 2


def test_both_sequences_show_one_head_with_its_own_noise() -> None:
    first, second = (Scan(site_profile("I"), sequence, KEY).kspace(1, 64)[0, 0] for sequence in ("T1", "T2"))
    assert np.abs(first - second).max() > 0
    air = [np.abs(magnitude_image(k[None, None]))[0] for k in (first, second)]
    edges = [np.hypot(*np.gradient(a)) for a in air]
    assert np.corrcoef(edges[0].ravel(), edges[1].ravel())[0, 1] > 0.35
    assert abs(np.corrcoef(air[0][:8, :8].ravel(), air[1][:8, :8].ravel())[0, 1]) < 0.5


def test_coils_share_the_field_of_a_single_one() -> None:
    profile = replace(SITES["F"], snr=np.inf)
    single, several = images(profile), images(profile, coils=4)
    assert several.shape == (1, 4, 96, 96)
    rss = np.sqrt((np.abs(several) ** 2).sum(1))
    assert np.abs(rss - np.abs(single[:, 0])).max() < 0.12 * np.abs(single).max()  # the point spread is before the root
    power = (np.abs(several[0]) ** 2).sum((1, 2))
    assert power.max() < 3 * power.min()
    head = np.abs(single[0, 0]) > 0.3 * np.abs(single).max()
    ratio = (several[0, 0] / several[0, 2])[head]
    assert np.abs(ratio).max() > 4 * np.abs(ratio).min()  # each coil sees its own side
    assert np.abs(np.angle(ratio)).std() > 0.05  # with its own phase


@pytest.mark.parametrize("slices", [1, 2, 8, 31])
def test_slices_lie_evenly_around_the_middle(slices: int) -> None:
    heights = np.array(slice_heights(slices))
    assert heights.mean() == pytest.approx(25)
    assert heights.min() >= -4 and heights.max() <= 54
    if slices > 1:
        np.testing.assert_allclose(np.diff(heights), min(6, 58 / slices))
