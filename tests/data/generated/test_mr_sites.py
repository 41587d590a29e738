# SPDX-License-Identifier: Apache-2.0
"""Tissues and institutions: the signal equation, the contrast of every site, profiles drawn from names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedmonai.data.generated.mr_sites import AVERAGE, SITES, SiteProfile, site_profile
from fedmonai.data.generated.mr_tissue import TISSUE_NAMES, TISSUES, relaxation, spin_echo
from fedmonai.errors import ConfigError


def signals(profile: SiteProfile, timing: tuple[float, float]) -> dict[str, float]:
    return dict(zip(TISSUE_NAMES, spin_echo(*relaxation(profile.field_strength), *timing), strict=True))


def test_spin_echo_signal() -> None:
    # TR = T1 ln 2 gives half of the magnetization, TE = T2 ln 4 leaves a quarter of it
    t1, t2 = np.array([800.0]), np.array([100.0])
    signal = spin_echo(np.array([0.8]), t1, t2, float(t1[0] * np.log(2)), float(t2[0] * np.log(4)))
    np.testing.assert_allclose(signal, [0.8 / 2 / 4])


def test_t1_grows_with_the_field_as_in_the_table() -> None:
    white = TISSUE_NAMES.index("white")
    np.testing.assert_allclose(relaxation(1.5)[1][white], TISSUES["white"].t1)
    np.testing.assert_allclose(relaxation(3.0)[1][white], TISSUES["white"].t1 * 2 ** TISSUES["white"].t1_growth)
    assert relaxation(3.0)[2][white] < relaxation(1.5)[2][white]


@pytest.mark.parametrize("shift", ["none", "normal", "strong"])
@pytest.mark.parametrize("site", ["B", "F", "H", "I", "B2", "site01", "site02", "site03"])
def test_contrast_has_the_order_of_its_weighting_at_every_site(site: str, shift: str) -> None:
    profile = site_profile(site, shift)
    t1, t2 = signals(profile, profile.t1), signals(profile, profile.t2)
    assert t1["white"] > 1.1 * t1["gray"] > 1.3 * t1["csf"]
    assert t2["csf"] > 1.3 * t2["gray"] > 1.3 * 1.1 * t2["white"]


def test_the_four_institutions_differ_in_every_property() -> None:
    for name in ("t1", "t2", "field_of_view", "sharpness", "snr", "bias", "phase", "gain", "population"):
        assert len({getattr(profile, name) for profile in SITES.values()}) == 4, name
    assert {profile.field_strength for profile in SITES.values()} == {1.5, 3.0}
    assert [site for site, profile in SITES.items() if profile.stripped] == ["B"]


def test_no_shift_makes_all_sites_alike_and_a_strong_one_drives_them_apart() -> None:
    assert all(site_profile(site, "none") == AVERAGE for site in ("B", "F", "H", "I", "site01"))
    for site, normal in SITES.items():
        assert site_profile(site) == normal
        strong = site_profile(site, "strong")
        assert abs(np.log(strong.snr / AVERAGE.snr)) > abs(np.log(normal.snr / AVERAGE.snr))
        assert strong.t1[0] / AVERAGE.t1[0] == pytest.approx((normal.t1[0] / AVERAGE.t1[0]) ** 1.8)
        assert (strong.population, strong.stripped) == (normal.population, normal.stripped)


def test_a_numbered_name_is_another_institution_drawn_from_the_name_alone() -> None:
    names = [f"site{number:02d}" for number in range(20)]
    profiles = {site_profile(name) for name in names}
    assert len(profiles) == 20
    assert site_profile("site07") == site_profile("site07")
    variant = site_profile("B2")
    assert variant != SITES["B"]
    assert (variant.population, variant.stripped) == (SITES["B"].population, True)
    assert all(0.6 <= profile.sharpness <= 1 and 218 <= profile.field_of_view <= 264 for profile in profiles)


@pytest.mark.parametrize("site", ["Q", "b", "brats", "07", "B/2", "../B2", "", "B2 ", None])
def test_any_other_name_is_refused(site: str | None) -> None:
    with pytest.raises(ConfigError, match=r"site: '.*' is unknown; choose B, F, H, I, .*'site07'"):
        site_profile(site)  # type: ignore[arg-type]


def test_an_unknown_shift_is_refused() -> None:
    with pytest.raises(ConfigError, match="shift: 'huge' is unknown; choose one of none, normal, strong"):
        site_profile("B", "huge")


def test_changes_are_made_after_the_shift_and_add_up() -> None:
    profile = site_profile("I", "strong", ["field_of_view", "inverted"])
    assert profile == replace(
        site_profile("I", "strong"), inverted=True, field_of_view=1.5 * site_profile("I", "strong").field_of_view
    )
    assert site_profile("I", "none", []) == AVERAGE


def test_an_unknown_change_is_named() -> None:
    with pytest.raises(ConfigError, match=r"changes: 'rotated' is unknown; choose among inverted"):
        site_profile("I", changes=["rotated"])
