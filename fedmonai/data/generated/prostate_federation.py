# SPDX-License-Identifier: Apache-2.0
"""Federation of artificial prostate MRI sites in the layout of the public six-site set, the default data of IOP-FL.

The images are for trying methods and for tests. A number reached on them says nothing about patients' images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from fedmonai.data.generated.folder import generated_folder, whole_number
from fedmonai.data.generated.prostate_scan import (
    LABEL_CONVENTIONS,
    PROSTATE_PROFILES,
    ProstateProfile,
    ProstateScan,
    ProstateVolume,
    prostate_profile,
)
from fedmonai.errors import ConfigError
from fedmonai.io import FileName, InputPath, OutputPath
from fedmonai.names import as_list

__all__ = ["generate_prostate_federation", "generated_prostate_site"]


#: Part of the manifest; a change of the images comes with a new number.
VERSION = 2
SLICE_RANGE = (12, 24)
_LIMITS = {"cases": (1, 1000), "slices": (1, 64), "size": (32, 1024), "seed": (0, 2**63 - 1)}


def generate_prostate_federation(
    root: OutputPath,
    sites: FileName | Sequence[FileName] = tuple(PROSTATE_PROFILES),
    cases: int | Mapping[str, int] = 12,
    slices: int | None = None,
    size: int = 384,
    seed: int = 0,
    convention: str = "prostate",
) -> InputPath:
    """Generate several sites, ``<root>/<site>/CaseXX.nii.gz`` with ``CaseXX_segmentation.nii.gz``, and return ``root``.

    Pelves are drawn at random, one for each man: a prostate with peripheral zone, nodular central gland, front stroma,
    urethra and sometimes a tumor, bladder, seminal vesicles, rectum, pelvic floor, muscles, bones, vessels and fat.
    The contrast follows the spin-echo equation S = density (1 - exp(-TR/T1)) exp(-TE/T2). Sites differ in TR and TE,
    field strength, pixel and slice size, point spread, receive field, noise and size of the gland; at BIDMC a coil in
    the rectum receives (:data:`fedmonai.data.generated.prostate_scan.PROSTATE_PROFILES` has the table).
    What is there already is kept; see :func:`generated_prostate_site` for files, arguments and errors.

    Args:
        cases: men of each site, one number or one by site.
        convention: of the labels of all these sites; those of a federation with several conventions are generated one
            by one.
    """
    names = as_list(sites)
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"sites: {names} is empty or names one twice; give each name once.")
    for site in names:
        prostate_profile(site)  # a misspelt name is said before minutes of work
        if isinstance(cases, Mapping) and site not in cases:
            raise ConfigError(f"cases: {dict(cases)} has no number for site {site}.")
    for site in names:
        number = cases[site] if isinstance(cases, Mapping) else cases
        generated_prostate_site(root, site, number, slices, size, seed, convention)
    return str(root)


def generated_prostate_site(
    root: OutputPath,
    site: FileName,
    cases: int = 12,
    slices: int | None = None,
    size: int = 384,
    seed: int = 0,
    convention: str = "prostate",
) -> InputPath:
    """Return ``<root>/<site>``, the folder of one site, which is generated if it is not there.

    Images are int16 volumes (size, size, slices) with axes to the left, to the back and upward and the spacing in the
    header. Masks are uint8: 1 = prostate; at ISBI and ISBI_1.5 1 = central gland and 2 = peripheral zone, as in the
    public set. A voxel belongs to the prostate if its center lies in it. The slices reach beyond the prostate at both
    ends.

    A case depends on (seed, site, case, slices, size), not on which other sites or cases there are. The same arguments
    give the same voxels on the same machine.

    Args:
        root: folder of the federation.
        site: ``BIDMC``, ``HK``, ``I2CVB``, ``ISBI``, ``ISBI_1.5`` or ``UCL``.
        cases: number of men.
        slices: of each man, spread over his prostate (at most 7 mm apart). None (default): as many as the site's slice
            distance needs, 12 to 24.
        size: rows and columns. The field of view (140 to 240 mm) is the site's, so the pixel grows as size shrinks.
        seed: of everything.
        convention: what the masks outline on the same images, one of
            :data:`fedmonai.data.generated.prostate_scan.LABEL_CONVENTIONS`: ``prostate``; ``margin``, with 6 mm around
            it; ``central``, its central gland; ``left``, its left half. ``prostate`` and ``left`` tell zones apart.

    Raises:
        ConfigError: an argument out of range; the folder holds other data, or was generated with other arguments.
    """
    profile = prostate_profile(site)
    if convention not in LABEL_CONVENTIONS:
        raise ConfigError(f"convention: '{convention}' is unknown; choose one of {', '.join(LABEL_CONVENTIONS)}.")
    numbers = {"cases": cases, "size": size, "seed": seed} | ({} if slices is None else {"slices": slices})
    parameters = {
        "generator": "prostate",
        "version": VERSION,
        "site": site,
        "convention": convention,
        "slices": None,
        **{name: whole_number(name, value, *_LIMITS[name]) for name, value in numbers.items()},
    }
    folder = Path(root) / site
    generated_folder(folder, parameters, partial(_write_site, profile=profile, parameters=parameters))
    return str(folder)


def _write_site(folder: Path, profile: ProstateProfile, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Write the volumes of one site; returns the profile, for the reader of the manifest."""
    for number in range(parameters["cases"]):
        case = f"Case{number:02d}"
        scan = ProstateScan(profile, (parameters["seed"], parameters["site"], case), parameters["convention"])
        volume = scan.volume(parameters["size"], parameters["slices"], SLICE_RANGE)
        _write_nifti(folder / f"{case}.nii.gz", volume.image, volume)
        _write_nifti(folder / f"{case}_segmentation.nii.gz", volume.mask, volume)
    return {"profile": asdict(profile)}


def _write_nifti(path: Path, values: np.ndarray, volume: ProstateVolume) -> None:
    """Write (rows, columns, slices) with axes left, posterior, superior around the middle of the volume."""
    lengths = np.array([volume.spacing[1], volume.spacing[0], volume.spacing[2]])
    affine = np.diag([-lengths[0], -lengths[1], lengths[2], 1.0])
    middle = (np.array([values.shape[1], values.shape[0], values.shape[2]]) - 1) / 2
    affine[:3, 3] = -affine[:3, :3] @ middle
    image = nib.Nifti1Image(np.ascontiguousarray(values.transpose(1, 0, 2)), affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
