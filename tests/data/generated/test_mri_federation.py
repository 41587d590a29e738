# SPDX-License-Identifier: Apache-2.0
"""The generated MR federation: layout, content of the volumes, idempotence, independence, errors."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numerics import assert_within

from fedmonai.data.generated import mri_federation as module
from fedmonai.data.generated.mr_sites import CHANGES
from fedmonai.data.generated.mri_federation import generate_mri_federation, generated_mri_site
from fedmonai.data.kspace.dataset import KspaceDataset
from fedmonai.data.kspace.list import kspace_volumes
from fedmonai.errors import ConfigError
from fedmonai.transforms.kspace import zero_filled
from fedmonai.transforms.masks import CartesianMask

SMALL: dict[str, Any] = {"subjects": (2, 1, 1), "slices": 3, "size": 48}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("federation")
    assert generate_mri_federation(folder, sequences=("T1", "T2"), **SMALL) == str(folder)
    return folder


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.h5"))


def digest(folder: Path) -> dict[str, str]:
    out = {}
    for name in files(folder):
        with h5py.File(folder / name) as file:
            out[name] = hashlib.sha256(b"".join(file[key][()].tobytes() for key in sorted(file))).hexdigest()
    return out


def test_the_layout_is_that_of_the_other_datasets(root: Path) -> None:
    expected = [
        f"{site}/{sequence}/{split}/{site}_{split}_{number:03d}_{sequence}.h5"
        for site in "BFHI"
        for sequence in ("T1", "T2")
        for split, count in (("test", 1), ("train", 2), ("val", 1))
        for number in range(count)
    ]
    assert files(root) == sorted(expected)
    assert sorted(path.name for path in root.rglob("*.json")) == ["generated.json"] * 8
    for site in "BFHI":
        dataset = KspaceDataset(kspace_volumes(root / site, "train", "T1"))
        assert len(dataset) == 2 * 3
        assert dataset[0]["kspace"].shape == (1, 48, 48)
        assert dataset[0]["target"].shape == (1, 48, 48)


def test_every_target_is_the_magnitude_of_its_k_space(root: Path) -> None:
    for name in files(root):
        with h5py.File(root / name) as file:
            assert sorted(file) == ["kspace", "reconstruction_esc"]
            kspace, target = file["kspace"][()], file["reconstruction_esc"][()]
            assert (kspace.dtype, kspace.shape) == (np.complex64, (3, 48, 48))
            assert (target.dtype, target.shape) == (np.float32, (3, 48, 48))
            image = zero_filled(torch.from_numpy(kspace)[:, None], 48).numpy()
            assert_within(image, target, 2 * (48 + 48))  # there and back over rows and columns
            assert file.attrs["max"] == target.max() > 0
            norm = np.sqrt((target.astype(np.float64) ** 2).sum())
            assert_within(np.float32(file.attrs["norm"]), norm, 3 + 48 + 48)
            assert file.attrs["acquisition"] == f"AX{name.split('/')[1]}"
            assert file.attrs["patient_id"] == Path(name).name[:-6]


def test_no_subject_is_in_two_splits_and_no_two_subjects_are_alike(root: Path) -> None:
    patients: dict[str, set[str]] = {}
    targets = []
    for name in files(root):
        with h5py.File(root / name) as file:
            patients.setdefault(file.attrs["patient_id"], set()).add(name.split("/")[2])
            if "/T1/" in name:
                targets.append(file["reconstruction_esc"][()].ravel() / file.attrs["norm"])
    assert len(patients) == 16
    assert all(len(splits) == 1 for splits in patients.values())
    likeness = np.stack(targets) @ np.stack(targets).T
    assert np.max(likeness - 2 * np.eye(len(targets))) < 0.98


def test_subjects_and_slices_of_one_site_fit_together(root: Path) -> None:
    """Neighboring slices resemble each other more than slices two apart; k-space is complex with real phase."""
    for name in files(root):
        with h5py.File(root / name) as file:
            target, kspace = file["reconstruction_esc"][()], file["kspace"][()]
        near = np.corrcoef(target[0].ravel(), target[1].ravel())[0, 1]
        far = np.corrcoef(target[0].ravel(), target[2].ravel())[0, 1]
        assert near > 0.6 and far < near
        # a real image has k(-f) = conj k(f); the asymmetric part is zero for it
        inner = kspace[:, 1:, 1:]
        mirrored = inner[:, ::-1, ::-1].conj()
        assert np.linalg.norm(inner - mirrored) > 0.2 * np.linalg.norm(inner)


def test_undersampling_fourfold_costs_what_it_does_in_a_head(root: Path) -> None:
    """Zero filling is far from the target and far from useless: 14 to 30 dB at this size."""
    mask = CartesianMask()
    for name in files(root):
        with h5py.File(root / name) as file:
            kspace, target = torch.from_numpy(file["kspace"][()])[:, None], file["reconstruction_esc"][()]
        image = zero_filled(kspace, 48, mask.from_file_name(name, (48, 48))).numpy()
        psnr = 10 * np.log10(target.max() ** 2 / np.mean((image - target) ** 2))
        assert 14 < psnr < 30


def test_the_same_arguments_give_the_same_bytes_whatever_else_is_generated(root: Path, tmp_path: Path) -> None:
    alone = generated_mri_site(tmp_path, "F", "T2", **SMALL)
    assert alone == str(tmp_path / "F")
    assert digest(tmp_path / "F" / "T2") == digest(root / "F" / "T2")
    more = Path(generated_mri_site(tmp_path / "more", "F", "T2", **{**SMALL, "subjects": (3, 0, 1)}))
    first, other = digest(root / "F" / "T2"), digest(more / "T2")
    assert {name for name in other if name not in first} == {"train/F_train_002_T2.h5"}
    assert all(first[name] == other[name] for name in first if name in other)
    assert not (more / "T2" / "val").exists()
    reseeded = Path(generated_mri_site(tmp_path / "seed", "F", "T2", **SMALL, seed=1))
    assert not set(digest(reseeded / "T2").values()) & set(first.values())


def test_another_process_generates_the_same_bytes(root: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "fedmonai",
        "generate",
        "--root",
        str(tmp_path),
        "--sites",
        "H",
        "--subjects",
        "1,0,0",
    ]
    command += ["--slices", "3", "--size", "48"]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path))
    made, known = digest(tmp_path / "H"), digest(root / "H")
    assert list(made) == ["T1/train/H_train_000_T1.h5"]
    assert made.items() <= known.items()


def test_what_is_there_is_not_written_again_and_sequences_can_be_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    write = module._write_volume
    monkeypatch.setattr(module, "_write_volume", lambda path, *rest: (written.append(path), write(path, *rest)))
    settings = {"subjects": [1, 0, 0], "slices": 1, "size": 32}
    generate_mri_federation(tmp_path, ("B", "site01"), "T1", **settings)
    assert len(written) == 2
    generate_mri_federation(tmp_path, ["B", "site01"], ["T1"], **settings)
    assert len(written) == 2
    generated_mri_site(tmp_path, "B", ("T1", "T2"), **settings)
    assert len(written) == 3


def test_an_interrupted_generation_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"sites": ("B", "H"), "subjects": (2, 0, 0), "slices": 1, "size": 32}
    write, count = module._write_volume, 0

    def interrupted(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 4:  # the second subject of the second site
            raise KeyboardInterrupt
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_volume", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate_mri_federation(tmp_path / "cut", **settings)
    assert not (tmp_path / "cut" / "H" / "T1").exists()
    generate_mri_federation(tmp_path / "cut", **settings)
    generate_mri_federation(tmp_path / "whole", **settings)
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")
    assert len(digest(tmp_path / "cut")) == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"size": 64}, "size 48 instead of 64"),
        ({"seed": 5}, "seed 0 instead of 5"),
        ({"shift": "strong"}, "shift normal instead of strong"),
        ({"subjects": (2, 1, 2)}, r"subjects \[2, 1, 1\] instead of \[2, 1, 2\]"),
        ({"slices": 4, "coils": 2}, "coils 1 instead of 2, slices 3 instead of 4"),
    ],
)
def test_other_arguments_need_another_folder(root: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"B/T1 was generated with {named}; choose another folder or delete"):
        generated_mri_site(root, "B", **{**SMALL, **change})


def test_images_of_another_origin_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "B" / "T1" / "train").mkdir(parents=True)
    (tmp_path / "B" / "T1" / "train" / "patient.h5").write_bytes(b"real")
    with pytest.raises(ConfigError, match="holds other data than generated ones"):
        generated_mri_site(tmp_path, "B", **SMALL)
    assert (tmp_path / "B" / "T1" / "train" / "patient.h5").read_bytes() == b"real"


def test_several_coils(tmp_path: Path) -> None:
    site = Path(generated_mri_site(tmp_path, "I", subjects=(1, 0, 0), slices=2, size=32, coils=4))
    with h5py.File(site / "T1" / "train" / "I_train_000_T1.h5") as file:
        assert sorted(file) == ["kspace", "reconstruction_rss"]
        kspace, target = file["kspace"][()], file["reconstruction_rss"][()]
    assert kspace.shape == (2, 4, 32, 32) and target.shape == (2, 32, 32)
    image = zero_filled(torch.from_numpy(kspace), 32).numpy()
    assert_within(image, target, 2 * (32 + 32) + 4)  # there and back over rows and columns, and over the coils
    item = KspaceDataset(kspace_volumes(site, "train", "T1"), hybrid_kspace=False)[0]
    assert item["kspace"].shape == (4, 32, 32)


def test_the_manifest_tells_how_the_site_was_made(root: Path) -> None:
    content = json.loads((root / "H" / "T2" / "generated.json").read_text())
    assert content["parameters"] == {
        "generator": "mri",
        "version": module.VERSION,
        "site": "H",
        "sequence": "T2",
        "subjects": [2, 1, 1],
        "shift": "normal",
        "slices": 3,
        "size": 48,
        "seed": 0,
        "coils": 1,
    }
    assert content["profile"]["field_strength"] == 1.5
    assert len(content["files"]) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sites": ("B", "Q")}, "site: 'Q' is unknown; choose B, F, H, I"),
        ({"sites": ()}, "sites: .* is empty or names one twice"),
        ({"sites": ("B", "B")}, "sites: .* is empty or names one twice"),
        ({"sequences": ("FLAIR",)}, "sequences: 'FLAIR' is unknown; allowed are T1, T2"),
        ({"subjects": (2, 1)}, r"subjects: \(2, 1\) is not three numbers"),
        ({"subjects": 2}, "subjects: 2 is not three numbers"),
        ({"subjects": (0, 0, 0)}, "subjects: no split has a subject"),
        ({"subjects": (2, -1, 0)}, "subjects: -1 is not allowed; give a whole number from 0"),
        ({"slices": 0}, "slices: 0 is not allowed; give a whole number from 1 to 512"),
        ({"size": 16}, "size: 16 is not allowed; give a whole number from 32 to 1024"),
        ({"size": 64.0}, "size: 64.0 is not allowed"),
        ({"seed": -1}, "seed: -1 is not allowed"),
        ({"coils": True}, "coils: True is not allowed"),
        ({"shift": "weak"}, "shift: 'weak' is unknown; choose one of none, normal, strong"),
    ],
)
def test_wrong_arguments_are_said_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        generate_mri_federation(tmp_path, **{**SMALL, **arguments})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_a_change_survives_instance_normalization(root: Path, tmp_path: Path, change: str) -> None:
    """The same heads in a folder of their own; normalized images differ by more than a fifth of their deviation."""
    folder = Path(generated_mri_site(tmp_path, "I", changes=[change], **SMALL))
    assert folder == tmp_path / f"I_{change}"
    name = "T1/train/I_train_000_T1.h5"
    images = []
    for place in (root / "I", folder):
        with h5py.File(place / name) as file:
            image = file["reconstruction_esc"][1]
            images.append((image - image.mean()) / image.std())
    assert np.sqrt(np.square(images[1] - images[0]).mean()) > 0.2


def test_changes_in_any_order_are_one_site(tmp_path: Path) -> None:
    small = {**SMALL, "subjects": (1, 0, 0), "slices": 1}
    first = Path(generated_mri_site(tmp_path, "I", changes=["texture", "coil"], **small))
    times = {name: (first / name).stat().st_mtime_ns for name in files(first)}
    assert generated_mri_site(tmp_path, "I", changes=["coil", "texture"], **small) == str(first)
    assert {name: (first / name).stat().st_mtime_ns for name in files(first)} == times
