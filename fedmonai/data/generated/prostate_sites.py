# SPDX-License-Identifier: Apache-2.0
"""How six prostate MRI sites differ: sequence timing, resolution, coil, noise, and who is scanned there."""

from __future__ import annotations

from dataclasses import dataclass

from fedmonai.errors import ConfigError

__all__ = ["PROSTATE_PROFILES", "ProstateProfile", "prostate_profile"]


@dataclass(frozen=True)
class ProstateProfile:
    """One site's scanner, protocol and patients.

    Attributes:
        field_strength: in tesla.
        timing: (TR, TE) in ms of the T2-weighted fast spin echo.
        field_of_view: side of the square image in mm.
        thickness: distance of the slices in mm.
        resolution: acquired in-plane resolution in mm; the image is blurred to it.
        snr: signal of muscle over the standard deviation of the noise.
        bias: amplitude of the receive field's logarithm.
        endorectal: whether a coil in the rectum receives, which makes what lies near it very bright.
        gain: scanner units of a tissue with signal 1.
        volume: mean volume of the prostates in ml.
        lesions: share of men with a visible tumor.
        zones: masks hold 1 = central gland and 2 = peripheral zone instead of 1 = prostate.
    """

    field_strength: float
    timing: tuple[float, float]
    field_of_view: float
    thickness: float
    resolution: float
    snr: float
    bias: float
    endorectal: bool
    gain: float
    volume: float
    lesions: float
    zones: bool


#: The sites of IOP-FL. Field strength, kind of coil, pixel and slice sizes are of the kind published for them; timing,
#: noise and gland sizes are ours.
PROSTATE_PROFILES: dict[str, ProstateProfile] = {
    "BIDMC": ProstateProfile(3.0, (4200, 125), 140, 2.5, 0.45, 5.0, 0.12, True, 1500, 36, 0.5, False),
    "HK": ProstateProfile(1.5, (3600, 85), 175, 3.6, 0.75, 3.2, 0.22, False, 900, 45, 0.3, False),
    "I2CVB": ProstateProfile(3.0, (3400, 100), 240, 2.0, 0.85, 5.5, 0.45, False, 420, 50, 0.7, False),
    "ISBI": ProstateProfile(3.0, (4400, 104), 192, 3.6, 0.60, 7.0, 0.18, False, 1100, 48, 0.5, True),
    "ISBI_1.5": ProstateProfile(1.5, (3100, 150), 160, 3.0, 0.50, 3.5, 0.30, False, 320, 60, 0.5, True),
    "UCL": ProstateProfile(3.0, (5000, 92), 205, 3.3, 0.70, 6.0, 0.55, False, 700, 70, 0.6, False),
}


def prostate_profile(site: str) -> ProstateProfile:
    """The profile of a site.

    Raises:
        ConfigError: an unknown name.
    """
    if site not in PROSTATE_PROFILES:
        raise ConfigError(f"site: '{site}' is unknown; choose one of {', '.join(PROSTATE_PROFILES)}.")
    return PROSTATE_PROFILES[site]
