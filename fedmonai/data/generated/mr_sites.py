# SPDX-License-Identifier: Apache-2.0
"""Profiles of institutions: sequence timing, field strength, resolution, coils, noise, patients."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from fedmonai.data.generated.brain import Population
from fedmonai.errors import ConfigError
from fedmonai.seeding import stream

SHIFTS = {"none": 0.0, "normal": 1.0, "strong": 1.8}


@dataclass(frozen=True)
class SiteProfile:
    """One institution's scanner, protocol and patients.

    Attributes:
        field_strength: in tesla; T1 grows with it.
        t1, t2: (TR, TE) in ms of the T1- and T2-weighted spin echo.
        field_of_view: side of the square image in mm.
        sharpness: acquired share of the k-space width in both directions (the rest is zero-filled), in (0, 1].
        snr: mean signal of white matter over the noise's standard deviation (of its real part) in the image.
        bias: amplitude of the receive field's logarithm; 0 = uniform.
        phase: amplitude of the smooth image phase in rad; 0 = real images.
        gain: signal in the scanner's units of a tissue with signal 1.
        stripped: whether images come without skull and scalp, as public tumor collections do.
        population: who is scanned.
        texture: relative amplitude of the unevenness within a tissue, and its wavelength in mm.
        surface_coil: fall of the receive field's logarithm across the head, away from a coil at its right; 0 = none.
        inverted: whether bright tissues are dark and dark ones bright; air stays black.
    """

    field_strength: float
    t1: tuple[float, float]
    t2: tuple[float, float]
    field_of_view: float
    sharpness: float
    snr: float
    bias: float
    phase: float
    gain: float
    stripped: bool
    population: Population
    texture: tuple[float, float] = (0.025, 11.0)
    surface_coil: float = 0.0
    inverted: bool = False


#: The four institutions of Guo et al. (CVPR 2021) by the kind of their data. The values are ours, of a usual size.
SITES: dict[str, SiteProfile] = {
    # BraTS: tumor patients, brain-extracted and resampled
    "B": SiteProfile(3.0, (530, 9), (4200, 100), 230, 0.94, 45, 0.06, 0.7, 900, True, Population(0.9, 0.0, 0.1, 0.3)),
    # fastMRI: clinical mixture, sharp, strong receive field of a many-channel coil
    "F": SiteProfile(
        3.0, (480, 8), (5600, 110), 222, 1.0, 26, 0.25, 1.8, 0.02, False, Population(0.15, 0.1, 0.3, 0.35, 0.25)
    ),
    # HPKS: after stroke, older 1.5 T scanner, noisy and less sharp
    "H": SiteProfile(
        1.5, (430, 15), (3400, 88), 250, 0.80, 16, 0.14, 1.2, 250, False, Population(0.0, 0.7, 0.6, 0.75, 0.2)
    ),
    # IXI: healthy volunteers
    "I": SiteProfile(1.5, (560, 10), (5700, 96), 242, 0.88, 34, 0.10, 1.0, 600, False, Population(atrophy=0.1)),
}

#: What every site is at ``shift="none"``, and what the others are compared with at ``shift="strong"``.
AVERAGE = SiteProfile(
    3.0, (510, 10), (4600, 98), 236, 0.90, 30, 0.12, 1.1, 300, False, Population(0.25, 0.2, 0.25, 0.35, 0.25)
)

#: Changes of a site that instance normalization does not undo: they alter what is seen, not how bright it is.
CHANGES: dict[str, Callable[[SiteProfile], SiteProfile]] = {
    "inverted": lambda profile: replace(profile, inverted=True),
    "field_of_view": lambda profile: replace(profile, field_of_view=1.5 * profile.field_of_view),
    "coil": lambda profile: replace(profile, surface_coil=1.2),
    "texture": lambda profile: replace(profile, texture=(0.2, 9.0)),
}

_NUMBERED = re.compile(r"([A-Za-z]+)[0-9]+")
_LIMITS = {"field_of_view": (218.0, 264.0), "sharpness": (0.6, 1.0), "snr": (8.0, 90.0), "bias": (0.0, 0.6)}


def site_profile(site: str, shift: str = "normal", changes: Sequence[str] = ()) -> SiteProfile:
    """The profile of a site.

    Args:
        site: ``B``, ``F``, ``H``, ``I``; or letters and a number for another institution, drawn from its name alone:
            ``B2`` has B's kind of patients on another scanner, ``site07`` takes each property from a random one of
            the four and varies it. So federations of any number of sites can be simulated.
        shift: ``none`` gives all sites the same average profile, ``normal`` the profile itself; ``strong`` takes the
            ratios of timing, sharpness, SNR, bias, phase and field of view to the average to the power of 1.8.
        changes: further differences, which survive instance normalization: ``inverted`` contrast, a ``field_of_view``
            half as large again, a surface ``coil`` at the right of the head, a coarse ``texture`` of the tissues.

    Raises:
        ConfigError: a name, a shift or a change that is not allowed.
    """
    if shift not in SHIFTS:
        raise ConfigError(f"shift: '{shift}' is unknown; choose one of {', '.join(SHIFTS)}.")
    for change in changes:
        if change not in CHANGES:
            raise ConfigError(f"changes: '{change}' is unknown; choose among {', '.join(CHANGES)}.")
    profile = SITES.get(site) if isinstance(site, str) else None
    if profile is None:
        profile = _another_institution(site)
    if shift != "normal":
        profile = AVERAGE if shift == "none" else _away_from_average(profile, SHIFTS[shift])
    for change in changes:
        profile = CHANGES[change](profile)
    return profile


def _another_institution(site: str) -> SiteProfile:
    match = _NUMBERED.fullmatch(site) if isinstance(site, str) else None
    if match is None:
        raise ConfigError(
            f"site: '{site}' is unknown; choose {', '.join(SITES)}, these with a number for a similar site ('B2'), "
            "or letters and a number for any other institution ('site07')."
        )
    rng = stream("site", site)
    donors = [SITES[match[1]]] if match[1] in SITES else list(SITES.values())
    values: dict[str, Any] = {
        field.name: getattr(donors[rng.randint(len(donors))], field.name) for field in fields(SiteProfile)
    }
    owner = donors[rng.randint(len(donors))]  # brain extraction belongs to a collection, so it goes with the patients
    values |= {"population": owner.population, "stripped": owner.stripped}
    jitter = {name: float(np.exp(rng.normal(0, 0.12))) for name in ("snr", "bias", "phase", "gain")}
    jitter |= {name: float(np.exp(rng.normal(0, 0.04))) for name in ("field_of_view", "sharpness")}
    values |= {name: _limited(name, values[name] * factor) for name, factor in jitter.items()}
    for name in ("t1", "t2"):
        values[name] = tuple(float(time * np.exp(rng.normal(0, 0.10))) for time in values[name])
    return SiteProfile(**values)


def _away_from_average(profile: SiteProfile, power: float) -> SiteProfile:
    def far(value: float, average: float) -> float:
        return average * (value / average) ** power

    changed: dict[str, Any] = {
        name: _limited(name, far(getattr(profile, name), getattr(AVERAGE, name)))
        for name in ("field_of_view", "sharpness", "snr", "bias", "phase")
    }
    for name in ("t1", "t2"):
        times = zip(getattr(profile, name), getattr(AVERAGE, name), strict=True)
        changed[name] = tuple(far(value, average) for value, average in times)
    return replace(profile, **changed)


def _limited(name: str, value: float) -> float:
    low, high = _LIMITS.get(name, (-np.inf, np.inf))
    return float(np.clip(value, low, high))
