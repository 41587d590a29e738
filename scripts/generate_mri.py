# SPDX-License-Identifier: Apache-2.0
"""Generate artificial MR sites in the layout of fastMRI.

python scripts/generate_mri.py --root data/generated --sites B,F,H,I --sequences T1,T2 --subjects 6,2,2 --seed 0
"""

from __future__ import annotations

import fire

from fedmonai.data.generated.mri_federation import generate_mri_federation
from fedmonai.errors import ConfigError


def generate(
    root: str,
    sites: tuple[str, ...] = ("B", "F", "H", "I"),
    sequences: tuple[str, ...] = ("T1",),
    subjects: tuple[int, ...] = (6, 2, 2),
    slices: int = 8,
    size: int = 128,
    seed: int = 0,
    coils: int = 1,
    shift: str = "normal",
    changes: tuple[str, ...] = (),
) -> None:
    """Generate the sites that are not there yet.

    Args:
        root: folder; the volumes are <root>/<site>/<sequence>/<train|val|test>/*.h5.
        sites: B, F, H, I, variants such as B2, or any letters with a number (site01), separated by commas.
        sequences: T1, T2 or both.
        subjects: numbers of subjects for train, val and test.
        slices: of each subject.
        size: rows and columns of an image.
        seed: of everything.
        coils: 1 for single-coil volumes.
        shift: none, normal or strong: how much the sites differ.
        changes: inverted, field_of_view, coil, texture, or several of them: differences that survive normalization.
    """
    arguments = (sites, sequences, subjects, slices, size, seed, coils, shift, changes)
    try:
        print(generate_mri_federation(str(root), *arguments))
    except ConfigError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    fire.Fire(generate)
