# SPDX-License-Identifier: Apache-2.0
"""Scan of one subject at one site: tissue signals, receive field, phase, point spread and noise, as k-space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from fedmonai.data.generated.brain import COARSE_STEP, HIGHEST, LOWEST, Brain
from fedmonai.data.generated.mr_sites import SiteProfile
from fedmonai.data.generated.mr_tissue import TISSUE_NAMES, relaxation, spin_echo
from fedmonai.data.generated.shapes import Array, RandomField, SmoothGrid
from fedmonai.seeding import stream

Kspace = NDArray[np.complex64]
MAX_SPACING = 6.0  # mm between slices
_FINE_PIXEL = 1.3  # mm; finer where the image's own pixels are small (at least two per pixel)
_COIL_RADIUS = 135.0  # mm from the image center


@dataclass(frozen=True)
class Receiver:
    """Receive field and image phase of one scan: smooth over the head and from slice to slice."""

    bias: float
    phase: float
    surface_coil: float
    uneven: RandomField
    off_resonance: RandomField
    ramp: tuple[float, ...]
    turn: float

    @classmethod
    def draw(cls, rng: np.random.RandomState, profile: SiteProfile) -> Receiver:
        """Draw a scan's receiver."""
        return cls(
            bias=profile.bias,
            phase=profile.phase,
            surface_coil=profile.surface_coil,
            uneven=RandomField.draw(rng, 200.0, 12),
            off_resonance=RandomField.draw(rng, 130.0, 16),
            ramp=tuple(rng.normal(0, 1, 3).tolist()),
            turn=float(rng.uniform(0, 2 * np.pi)),
        )

    def field(self, back: Array, right: Array, height: float, coils: int) -> Array:
        """Log magnitude and phase (rad) of each coil: float32 (2 * coils, rows, columns), log magnitudes first.

        One coil receives the whole field. Several share it so that the root of the sum of their squared
        sensitivities is the single coil's magnitude.
        """
        level = np.full_like(back, height)
        edge = ((back / 95) ** 2 + (right / 80) ** 2) - 0.4  # an array receives most from what is near it
        bias = self.bias * (0.55 * self.uneven(back, right, level) + 0.75 * edge) + self.surface_coil * right / 80
        sinus = np.exp(-((back + 62) ** 2 + right**2) / 900 - (height + 12) ** 2 / 800)  # air at the frontal sinus
        plane = (self.ramp[0] * back + self.ramp[1] * right) / 90 + self.ramp[2]
        phase = self.phase * (plane + 0.9 * self.off_resonance(back, right, level) + 2.0 * sinus)
        if coils == 1:
            return np.stack([bias, phase])
        angles = self.turn + 2 * np.pi * np.arange(coils).reshape(-1, 1, 1) / coils
        apart = back - _COIL_RADIUS * np.cos(angles), right - _COIL_RADIUS * np.sin(angles)
        own = -1.5 * np.log1p((apart[0] ** 2 + apart[1] ** 2) / 80**2)
        share = own - 0.5 * np.log(np.exp(2 * own).sum(0))
        # the field of a loop turns with the direction from it, by less than half a turn over the head
        turned = np.arctan2(*_facing(apart, angles))
        return np.concatenate([bias + share, phase + 1.2 * turned + angles])


def _facing(apart: tuple[Array, Array], angles: Array) -> tuple[Array, Array]:
    """Position across and along a coil's axis, which looks at the image center."""
    across = -np.sin(angles) * apart[0] + np.cos(angles) * apart[1]
    along = -np.cos(angles) * apart[0] - np.sin(angles) * apart[1]
    return across, along


@dataclass(frozen=True)
class Scan:
    """A subject of a site, scanned with one sequence.

    The anatomy and receiver come from (seed, site, subject), so T1 and T2 of a subject show one head; the noise also
    from the sequence. None depends on other subjects and sites, and the head not on the size or number of slices.

    Args:
        profile: of the site.
        sequence: ``T1`` or ``T2``.
        key: what the random streams are made from, e.g. (seed, site, split, number).
    """

    profile: SiteProfile
    sequence: str
    key: tuple[str | int, ...]

    def kspace(self, slices: int, size: int, coils: int = 1) -> Kspace:
        """k-space of all slices, complex64 (slices, coils, size, size), centered and orthonormal."""
        rng = stream(*self.key, "subject")
        brain = Brain.draw(rng, self.profile.population)
        signal = self._signals(rng)
        amplitude, wavelength = self.profile.texture
        texture = RandomField.draw(rng, wavelength, 32, 0.4)
        receiver = Receiver.draw(rng, self.profile)
        rng = stream(*self.key, self.sequence, "noise")
        sigma = self._white_signal() / self.profile.snr  # of the real and of the imaginary part
        window = _window(size, self.profile.sharpness) * np.float32(self.profile.gain)
        grid, pixel, factor = _fine_grid(self.profile.field_of_view, size)
        out = np.empty((slices, coils, size, size), np.complex64)
        for index, height in enumerate(slice_heights(slices)):
            shares = brain.tissue(grid, height, max(0.8, pixel), self.profile.stripped)
            back, right = grid.coarse()
            uneven = 1 + amplitude * texture(right, -back, np.full_like(back, height))
            uneven, *field = grid.refine(uneven, *receiver.field(back, right, height, coils))
            magnitude = np.einsum("t,trc->rc", signal, shares) * uneven
            for coil in range(coils):
                image = magnitude * np.exp(field[coil] + 1j * field[coils + coil])
                noise = rng.standard_normal((2, size, size)) * sigma
                out[index, coil] = window * (_centered_fft(image, size) / factor + noise[0] + 1j * noise[1])
        return out

    def _signals(self, rng: np.random.RandomState) -> Array:
        """Signal of each tissue in this subject, whose tissues differ a little from the mean."""
        density, t1, t2 = (
            values * np.exp(rng.normal(0, 0.015, len(values))) for values in relaxation(self.profile.field_strength)
        )
        signal = spin_echo(density, t1, t2, *self._timing())
        if self.profile.inverted:
            tissue = density > 0
            signal[tissue] = signal[tissue].max() + signal[tissue].min() - signal[tissue]
        return signal.astype(np.float32)

    def _white_signal(self) -> float:
        signals = spin_echo(*relaxation(self.profile.field_strength), *self._timing())
        return float(signals[TISSUE_NAMES.index("white")])

    def _timing(self) -> tuple[float, float]:
        return self.profile.t1 if self.sequence == "T1" else self.profile.t2


def slice_heights(slices: int) -> list[float]:
    """Heights in mm of the slices, low to high: evenly spaced around the middle of the range, at most 6 mm apart."""
    spacing = min(MAX_SPACING, (HIGHEST - LOWEST) / slices)
    middle = 0.5 * (LOWEST + HIGHEST)
    return [middle + spacing * (index - 0.5 * (slices - 1)) for index in range(slices)]


def _fine_grid(field_of_view: float, size: int) -> tuple[SmoothGrid, float, int]:
    """The grid on which a slice is drawn, its pixel in mm, and how many of them fit in one pixel of the image."""
    pixel = field_of_view / size
    factor = max(2, int(np.ceil(pixel / _FINE_PIXEL)))
    axis = ((np.arange(size * factor) - size * factor // 2) * (pixel / factor)).astype(np.float32)
    return SmoothGrid(axis, axis, COARSE_STEP), pixel / factor, factor


def magnitude_image(kspace: Kspace) -> Array:
    """Root-sum-of-squares of the centered orthonormal inverse FFT: (slices, coils, H, W) to (slices, H, W)."""
    shifted = scipy.fft.ifftshift(kspace, axes=(-2, -1))
    image = scipy.fft.fftshift(scipy.fft.ifft2(shifted, norm="ortho"), axes=(-2, -1))
    return np.sqrt((np.abs(image) ** 2).sum(axis=1)).astype(np.float32)


def _centered_fft(image: NDArray[np.complex64], size: int) -> Kspace:
    """Orthonormal centered 2-D FFT, of which the central ``size`` x ``size`` frequencies are kept."""
    shifted = scipy.fft.ifftshift(image, axes=(-2, -1))
    kspace = scipy.fft.fftshift(scipy.fft.fft2(shifted, norm="ortho"), axes=(-2, -1))
    start = kspace.shape[-1] // 2 - size // 2
    return kspace[start : start + size, start : start + size]


def _window(size: int, sharpness: float) -> Array:
    """k-space window: 1 inside the acquired share of both axes, falling linearly over 4 % of the width, 0 outside.

    The receiver stored nothing beyond, neither signal nor noise.
    """
    frequency = (np.arange(size) - size // 2) / (size / 2)
    radius = np.maximum(np.abs(frequency)[:, None], np.abs(frequency)[None, :])
    return np.clip((sharpness - radius) / 0.08 + 1, 0, 1).astype(np.float32)
