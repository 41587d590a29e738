# SPDX-License-Identifier: Apache-2.0
"""Generated prostate MRI: the scan, and the sites' scanners."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedmonai.data.generated.pelvis import PELVIC_TISSUE_NAMES, Pelvis, pelvic_signals
from fedmonai.data.generated.shapes import Array, RandomField, SmoothGrid
from fedmonai.errors import ConfigError
from fedmonai.seeding import stream

__all__ = [
    "LABEL_CONVENTIONS",
    "PROSTATE_PROFILES",
    "ProstateProfile",
    "ProstateScan",
    "ProstateVolume",
    "prostate_profile",
]


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


#: What a site's experts outline: ``prostate`` the whole gland; ``margin`` the gland and 6 mm around it, as a target of
#: radiotherapy; ``central`` the central gland without the peripheral zone; ``left`` the man's left half of the gland,
#: as for a treatment of one side.
LABEL_CONVENTIONS = ("prostate", "margin", "central", "left")
LABEL_MARGIN = 6.0  # mm

COARSE_STEP = 2.5  # mm; walls and textures are folded from smooth fields at full resolution
MARGIN = 0.30  # of the prostate's height, shown above and below it
MOST_APART = 7.0  # mm between slices, however few are asked for


@dataclass(frozen=True)
class ProstateVolume:
    """Image int16 and mask uint8, both (rows to the back, columns to the left, slices upward), and spacing in mm."""

    image: NDArray[np.int16]
    mask: NDArray[np.uint8]
    spacing: tuple[float, float, float]


@dataclass(frozen=True)
class ProstateScan:
    """A man of a site.

    Anatomy, receive field and noise come from the key alone, so no man depends on other men or sites, and the anatomy
    not on the size or number of slices.

    Args:
        profile: of the site.
        key: what the random streams are made from, e.g. (seed, site, case).
        convention: what the mask outlines, one of :data:`LABEL_CONVENTIONS`.
    """

    profile: ProstateProfile
    key: tuple[str | int, ...]
    convention: str = "prostate"

    def volume(self, size: int, slices: int | None = None, limits: tuple[int, int] = (12, 24)) -> ProstateVolume:
        """Scan the man.

        Args:
            size: rows and columns.
            slices: their number, spread over the prostate; None takes what the site's slice distance needs to cover
                it, within ``limits``.
            limits: least and most slices of that choice.
        """
        rng = stream(*self.key, "anatomy")
        pelvis = Pelvis.draw(rng, self.profile.volume, self.profile.lesions, self.profile.endorectal)
        signals = pelvic_signals(self.profile.field_strength, *self.profile.timing)
        noise = signals[PELVIC_TISSUE_NAMES.index("muscle")] / self.profile.snr
        signals = signals * np.exp(rng.normal(0, 0.03, len(signals))).astype(np.float32)
        texture, uneven = RandomField.draw(rng, 9.0, 24, 0.5), RandomField.draw(rng, 220.0, 10)
        heights, thickness = self._heights(pelvis, slices, limits)
        pixel = self.profile.field_of_view / size
        axis = ((np.arange(size) - 0.5 * (size - 1)) * pixel).astype(np.float32)
        grid = SmoothGrid(axis, axis, COARSE_STEP)
        generator = stream(*self.key, "noise")
        image = np.empty((size, size, len(heights)), np.int16)
        mask = np.zeros(image.shape, np.uint8)
        for index, height in enumerate(heights):
            shares, whole, central = pelvis.tissue(grid, height, max(0.5, pixel))
            back, left = grid.coarse()
            level = np.full_like(back, height)
            mottled, field = grid.refine(
                1 + 0.04 * texture(left, back, level), self._field(pelvis, grid, level, uneven)
            )
            signal = np.einsum("t,trc->rc", signals, shares) * mottled * np.exp(field)
            image[..., index] = self._measured(signal, noise, pixel, generator)
            mask[..., index] = self._labels(whole, central, pelvis.left_of_middle(grid, height))
        return ProstateVolume(image, mask, (pixel, pixel, thickness))

    def _heights(self, pelvis: Pelvis, slices: int | None, limits: tuple[int, int]) -> tuple[list[float], float]:
        """Heights of the slices in mm, low to high, and their distance."""
        extent = 2 * pelvis.gland.radii[2] * (1 + MARGIN)
        count = int(np.clip(round(extent / self.profile.thickness), *limits)) if slices is None else slices
        thickness = self.profile.thickness if slices is None else min(MOST_APART, extent / slices)
        return [(index - 0.5 * (count - 1)) * thickness for index in range(count)], float(thickness)

    def _field(self, pelvis: Pelvis, grid: SmoothGrid, level: Array, uneven: RandomField) -> Array:
        """Logarithm of the receive field of one slice on the coarse grid."""
        back, left = grid.coarse()
        outward = (back / 110) ** 2 + (left / 110) ** 2  # coils on the skin receive most from what is near them
        field = self.profile.bias * (0.8 * uneven(left, back, level) + 1.2 * outward - 0.3)
        if self.profile.endorectal:
            x, y = pelvis.coil_center(float(level.flat[0]))
            distance = (left - x) ** 2 + (back - y) ** 2 + 0.3 * level**2
            field = field + np.log(0.08 + 3.0 / (1 + distance / 28**2) ** 1.5)
        return field

    def _measured(
        self, signal: Array, noise: float, pixel: float, generator: np.random.RandomState
    ) -> NDArray[np.int16]:
        """Magnitude image in scanner units: blurred to the acquired resolution, with noise in both channels."""
        blur = np.sqrt(max(0.0, self.profile.resolution**2 - pixel**2)) / (2.355 * pixel)
        real, imaginary = generator.standard_normal((2, *signal.shape)).astype(np.float32) * np.float32(noise)
        width = 0.4 * self.profile.resolution / pixel  # reconstruction interpolates, so noise of neighbors is alike
        if width > 0.3:
            gain = max(1.0, np.sqrt(2 * np.pi) * width)  # keeps its standard deviation
            real, imaginary = (gain * ndimage.gaussian_filter(part, width) for part in (real, imaginary))
        sharp = ndimage.gaussian_filter(signal, blur) if blur > 0.1 else signal
        magnitude = np.hypot(sharp + real, imaginary) * np.float32(self.profile.gain)
        return np.clip(np.rint(magnitude), 0, 32767).astype(np.int16)

    def _labels(self, whole: Array, central: Array, left: Array) -> NDArray[np.uint8]:
        """1 where the pixel's center lies in what is outlined; with zones 1 in the central gland, 2 around it."""
        inside = {
            "prostate": whole > 0,
            "margin": whole > -LABEL_MARGIN,
            "central": (whole > 0) & (central > 0),
            "left": (whole > 0) & (left > 0),
        }[self.convention]
        if not self.profile.zones or self.convention in ("margin", "central"):
            return inside.astype(np.uint8)
        return np.where(central > 0, 1, 2).astype(np.uint8) * inside
