# SPDX-License-Identifier: Apache-2.0
"""Tissues in a spin-echo sequence: relaxation times, proton density, signal equation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tissue:
    """Spin density relative to water, relaxation times in ms at 1.5 T, and how T1 grows with the field.

    T1(B0) = t1 * (B0 / 1.5)^t1_growth (Bottomley et al., Med Phys 1984, find such power laws); T2(B0) falls with
    B0^-0.08, the mean change of brain tissue between 1.5 T and 3 T.
    """

    density: float
    t1: float
    t2: float
    t1_growth: float = 0.45


#: Values near those reported for human tissue at 1.5 T (Stanisz et al., MRM 2005; Wansapura et al., JMRI 1999);
#: the T2 of fluid is the effective one of a slice through moving fluid. Order = order of the tissue axis everywhere.
TISSUES: dict[str, Tissue] = {
    "air": Tissue(0.0, 1000.0, 100.0, 0.0),
    "skin": Tissue(0.60, 750.0, 45.0, 0.35),
    "fat": Tissue(0.60, 300.0, 80.0, 0.35),
    "muscle": Tissue(0.75, 980.0, 42.0, 0.50),
    "bone": Tissue(0.10, 300.0, 3.0, 0.20),
    "marrow": Tissue(0.45, 420.0, 60.0, 0.40),
    "csf": Tissue(1.00, 4000.0, 900.0, 0.05),
    "gray": Tissue(0.80, 1000.0, 100.0, 0.43),
    "white": Tissue(0.70, 580.0, 75.0, 0.44),
    "deep_gray": Tissue(0.77, 840.0, 86.0, 0.44),
    "pallidum": Tissue(0.72, 720.0, 66.0, 0.44),
    "edema": Tissue(0.86, 1250.0, 165.0, 0.35),
    "tumor": Tissue(0.88, 1150.0, 130.0, 0.35),
    "necrosis": Tissue(0.95, 2200.0, 320.0, 0.20),
    "infarct": Tissue(0.90, 1500.0, 210.0, 0.30),
}
TISSUE_NAMES = tuple(TISSUES)


def relaxation(field_strength: float) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Density, T1 and T2 (ms) of all tissues at ``field_strength`` tesla, each an array over :data:`TISSUES`."""
    ratio = field_strength / 1.5
    density = np.array([tissue.density for tissue in TISSUES.values()])
    t1 = np.array([tissue.t1 * ratio**tissue.t1_growth for tissue in TISSUES.values()])
    t2 = np.array([tissue.t2 * ratio**-0.08 for tissue in TISSUES.values()])
    return density, t1, t2


def spin_echo(
    density: NDArray[np.float64], t1: NDArray[np.float64], t2: NDArray[np.float64], tr: float, te: float
) -> NDArray[np.float64]:
    """Signal of a spin-echo sequence, S = density * (1 - exp(-TR / T1)) * exp(-TE / T2); all times in ms."""
    return density * (1 - np.exp(-tr / t1)) * np.exp(-te / t2)
