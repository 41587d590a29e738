# SPDX-License-Identifier: Apache-2.0
"""A site's lock: made from a folder of small wheels, installed from its own without network; a changed byte ends it."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

LOCK = Path(__file__).parents[2] / "deploy" / "lock.py"


def write_wheel(folder: Path, name: str, version: str = "1.0", needs: str = "", content: str = "") -> Path:
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": content or f"VERSION = {version!r}\n",
        f"{info}/METADATA": metadata + (f"Requires-Dist: {needs}\n" if needs else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record.append(f"{path},sha256={digest},{len(text)}\n")
    files[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"])
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def lock(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(LOCK), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of wheels: tiny_app needs tiny_part, of which there are two versions."""
    folder = tmp_path_factory.mktemp("index")
    write_wheel(folder, "tiny_app", needs="tiny_part>=1")
    for version in ("1.0", "2.0"):
        write_wheel(folder, "tiny_part", version)
    (folder / "constraints.txt").write_text("tiny_part==1.0\n")
    return folder


@pytest.fixture
def locked(index: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "lock"
    pinned = ("--package", "tiny_app", "--constraint", index / "constraints.txt")
    done = lock("make", "--output", folder, *pinned, "--", "--no-index", "--find-links", index)
    assert done.returncode == 0, done.stderr
    assert "2 packages with their hashes" in done.stdout
    return folder


def test_lock_names_every_package_with_the_hash_of_its_wheel(locked: Path, index: Path) -> None:
    digests = {
        name: hashlib.sha256((index / f"{name}-1.0-py3-none-any.whl").read_bytes()).hexdigest()
        for name in ("tiny_app", "tiny_part")
    }
    lines = [f"{name}==1.0 --hash=sha256:{digest}" for name, digest in digests.items()]
    assert (locked / "requirements.lock").read_text().splitlines() == lines


def test_it_installs_from_its_own_folder(locked: Path, tmp_path: Path) -> None:
    done = lock("install", "--lock", locked, "--", "--target", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert "1.0" in (tmp_path / "site" / "tiny_part.py").read_text() and (tmp_path / "site" / "tiny_app.py").is_file()


def test_another_wheel_under_the_same_name_is_refused(locked: Path, tmp_path: Path) -> None:
    write_wheel(locked / "wheels", "tiny_part", content="import os\n")
    done = lock("install", "--lock", locked, "--", "--target", tmp_path / "site")
    assert done.returncode != 0 and "DO NOT MATCH THE HASHES" in done.stderr
    assert done.stderr.rstrip().endswith("error: pip failed; its message is above.")
    assert not (tmp_path / "site").exists()


def test_a_package_without_a_hash_is_refused(locked: Path, tmp_path: Path) -> None:
    path = locked / "requirements.lock"
    path.write_text(path.read_text().replace(" --hash", "  # --hash"))
    done = lock("install", "--lock", locked, "--", "--target", tmp_path / "site")
    assert done.returncode != 0 and not (tmp_path / "site").exists()


def test_bill_of_materials_or_how_to_make_one(locked: Path, index: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("cyclonedx_py") is None:
        pinned = ("--package", "tiny_part", "--no-constraint")
        done = lock("make", "--output", tmp_path / "other", *pinned, "--", "--no-index", "--find-links", index)
        assert "no sbom.json: pip install cyclonedx-bom, then python -m cyclonedx_py requirements" in done.stdout
        return
    content = json.loads((locked / "sbom.json").read_text())
    assert content["bomFormat"] == "CycloneDX"
    assert {part["name"] for part in content["components"]} == {"tiny_app", "tiny_part"}


def test_mistakes(locked: Path, tmp_path: Path) -> None:
    assert "is not empty; a lock holds one installation" in lock("make", "--output", locked).stderr
    assert "error: there is no requirements.lock in" in lock("install", "--lock", tmp_path / "none").stderr
