# SPDX-License-Identifier: Apache-2.0
"""What is in a distribution: the package, its bundles and plans, a command; no data, weights or results."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

import fedmonai

ROOT = Path(__file__).parents[1]
#: where the project's folders lie in a wheel
PLACES = {"fedmonai": "fedmonai", "bundles": "fedmonai/bundles", "plans": "fedmonai/plans"}
#: what is made in a bundle where it is used
MADE = ("models/model.pt", "data/x.h5", "runs/federated/report.md", "eval/x.csv")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this tree, built in this process, with weights and results in a bundle of a copy of the tree."""
    build = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed: extra 'package'")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not in a checkout")
    tree = tmp_path_factory.mktemp("tree")
    for name in listed.stdout.splitlines():
        if name.split("/")[0] in {*PLACES, "pyproject.toml", "README.md", "LICENSE", ".gitignore"}:
            if not (ROOT / name).is_file():  # removed and not committed yet
                continue
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    for name in MADE:
        path = tree / "bundles" / "fl_mr" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("made where it is used")
    (path,) = build.WheelBuilder(str(tree)).build(directory=str(tree / "dist"), versions=["standard"])
    return zipfile.ZipFile(path)


def test_wheel_holds_package_bundles_and_plans_and_no_more(wheel: zipfile.ZipFile) -> None:
    tree = Path(wheel.filename or "").parents[1]
    files = {place: [path for path in (tree / folder).rglob("*") if path.is_file()] for folder, place in PLACES.items()}
    there = {
        f"{place}/{path.relative_to(tree / folder).as_posix()}"
        for folder, place in PLACES.items()
        for path in files[place]
    }
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert "fedmonai/bundles/fl_mr/configs/train.json" in found
    assert there - found == {f"fedmonai/bundles/fl_mr/{name}" for name in MADE} and found <= there


def test_wheel_names_its_command_and_version(wheel: zipfile.ZipFile) -> None:
    info = f"fedmonai-{fedmonai.__version__}.dist-info"
    assert wheel.read(f"{info}/entry_points.txt").decode().split() == [
        "[console_scripts]",
        "fedmonai",
        "=",
        "fedmonai.__main__:main",
    ]
    assert f"\nVersion: {fedmonai.__version__}\n" in wheel.read(f"{info}/METADATA").decode()
