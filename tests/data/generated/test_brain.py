# SPDX-License-Identifier: Apache-2.0
"""The head: tissues that fill space, vary smoothly, and differ between populations as they should."""

from __future__ import annotations

import numpy as np
import pytest

from fedmonai.data.generated.brain import COARSE_STEP, Brain, Population
from fedmonai.data.generated.mr_tissue import TISSUE_NAMES
from fedmonai.data.generated.shapes import SmoothGrid

PIXEL = 2.0
AXIS = ((np.arange(120) - 60) * PIXEL).astype(np.float32)
GRID = SmoothGrid(AXIS, AXIS, COARSE_STEP)


def head(seed: int = 0, population: Population = Population()) -> Brain:  # noqa: B008
    return Brain.draw(np.random.RandomState(seed), population)


def volume(
    brain: Brain, tissue: str, heights: tuple[float, ...] = (0, 10, 20, 30, 40), stripped: bool = False
) -> float:
    """Mean area in mm^2."""
    index = TISSUE_NAMES.index(tissue)
    return float(np.mean([brain.tissue(GRID, z, PIXEL, stripped)[index].sum() for z in heights]) * PIXEL**2)


def test_shares_sum_to_one_in_every_pixel() -> None:
    shares = head(1, Population(tumor=1, infarct=1, white_lesions=1)).tissue(GRID, 20.0, PIXEL)
    assert shares.shape == (len(TISSUE_NAMES), 120, 120) and shares.dtype == np.float32
    assert shares.min() >= 0
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_a_head_has_the_size_and_composition_of_a_human_one(seed: int) -> None:
    brain = head(seed)
    # inside an adult's skull a slice near the ventricles has about 14 x 17 cm, i.e. 185 cm^2
    inside = {name: volume(brain, name) / 100 for name in ("gray", "white", "deep_gray", "csf", "pallidum")}
    assert 150 < sum(inside.values()) < 215
    assert 45 < inside["gray"] < 95
    assert 50 < inside["white"] < 100
    assert 1 < inside["deep_gray"] < 12
    everything = brain.tissue(GRID, 10.0, PIXEL)
    air = everything[TISSUE_NAMES.index("air")]
    border = np.concatenate([air[0], air[-1], air[:, 0], air[:, -1]])
    np.testing.assert_allclose(border, 1)  # the head lies inside the field of view


def test_cortex_is_folded() -> None:
    """The gray ribbon is several times longer than the circumference of the brain."""
    shares = head().tissue(GRID, 40.0, PIXEL)
    gray = shares[TISSUE_NAMES.index("gray")].sum() * PIXEL**2
    white = shares[TISSUE_NAMES.index("white")].sum() * PIXEL**2
    circumference = 2 * np.sqrt(np.pi * (gray + white))
    thickness = 3.0
    assert gray / thickness > 2.5 * circumference


def test_neighboring_slices_vary_smoothly() -> None:
    brain = head(2)
    first = brain.tissue(GRID, 20.0, PIXEL)
    apart = [np.abs(brain.tissue(GRID, 20.0 + step, PIXEL) - first).mean() for step in (0.1, 0.4, 1.6, 25.0)]
    assert 3.5 < apart[1] / apart[0] < 4.5  # proportional to the distance: the head is continuous
    assert apart[0] < 0.02 * apart[3]
    assert apart[2] < 0.35 * apart[3]


def test_atrophy_widens_the_ventricles_and_sulci() -> None:
    young = [volume(head(seed, Population(atrophy=0.0, atrophy_spread=0.0)), "csf") for seed in range(3)]
    old = [volume(head(seed, Population(atrophy=1.0, atrophy_spread=0.0)), "csf") for seed in range(3)]
    assert min(old) > 1.5 * max(young)


def test_lesions_belong_to_their_populations() -> None:
    healthy, patients = Population(), Population(tumor=1.0)
    assert volume(head(3, healthy), "tumor") == volume(head(3, healthy), "infarct") == 0
    assert all(volume(head(seed, patients), "tumor", tuple(range(0, 45, 4))) > 10 for seed in range(4))
    assert all(volume(head(seed, patients), "edema", tuple(range(0, 45, 4))) > 10 for seed in range(4))
    stroke = Population(infarct=1.0)
    assert all(volume(head(seed, stroke), "infarct", tuple(range(0, 45, 4))) > 10 for seed in range(4))
    spots = [volume(head(seed, Population(white_lesions=1.0)), "edema") for seed in range(4)]
    assert max(spots) > 20


def test_a_mass_displaces_the_tissue_around_it() -> None:
    brain = head(3, Population(tumor=1.0))
    center = np.array(brain.lesions.tumor_center, np.float32)
    radius = brain.lesions.tumor_radius
    outward = center + np.array([[0, 0, 0], [radius, 0, 0], [10 * radius, 0, 0]], np.float32)
    moved = np.stack(brain.lesions.displace(list(outward.T)), axis=1) - center
    # offset * (1 - 0.35 exp(-(distance / 1.6 radius)^2)): what is seen at the rim came from nearer to the center
    expected = np.array([0, radius * (1 - 0.35 * np.exp(-1 / 2.56)), 10 * radius])
    np.testing.assert_allclose(moved[:, 0], expected, rtol=1e-5, atol=1e-4)


def test_a_stripped_head_has_no_skull_and_the_same_brain() -> None:
    brain = head(4)
    for name in ("bone", "fat", "skin", "muscle", "marrow"):
        assert volume(brain, name, stripped=True) == 0 < volume(brain, name)
    for name in ("gray", "white", "deep_gray"):
        assert volume(brain, name, stripped=True) == volume(brain, name)
