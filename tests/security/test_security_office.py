# SPDX-License-Identifier: Apache-2.0
"""The page for a hospital's security office: its commands run as they stand, and what it says of settings is so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from child_processes import keygen
from page_blocks import blocks

from fedmonai.bundle.digest import bundle_digest
from fedmonai.errors import ConfigError
from fedmonai.integrations.site_settings import SiteSettings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security_office.md"
COMMANDS = [line for kind, text in blocks(PAGE) if kind == "bash" for line in text.splitlines()]
FOLDERS = ("/incoming", "/opt", "/etc/fedmonai", "/var/lib/fedmonai", "/data")
VARIABLES = {"FLWR_TELEMETRY_ENABLED": "flwr", "RAY_USAGE_STATS_ENABLED": "ray", "MLFLOW_DISABLE_TELEMETRY": "mlflow"}
VARIABLES |= {"FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "flwr"}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root folder with what the page takes for granted: a signed archive, the signers, state, scans."""
    root = tmp_path_factory.mktemp("machine")
    for name, mode in ((folder, 0o755) for folder in FOLDERS):
        (root / name.lstrip("/")).mkdir(parents=True, mode=mode)
    (root / "opt" / "bundles").mkdir()
    (root / "var/lib/fedmonai").chmod(0o700)
    keygen("-q", "-t", "ed25519", "-N", "", "-f", root / "key")
    (root / "etc/fedmonai/signers").write_text(f"lead@our.org {(root / 'key.pub').read_text()}")
    shutil.make_archive(str(root / "incoming/fl_mr"), "zip", ROOT / "bundles", "fl_mr")
    keygen("-Y", "sign", "-n", "fedmonai-bundle", "-f", root / "key", root / "incoming/fl_mr.zip")
    (root / "incoming/scans").mkdir()
    for number, name in enumerate("abc"):  # one subject for every split
        image = nib.Nifti1Image(np.random.RandomState(number).rand(8, 8, 4), np.eye(4))
        nib.save(image, root / f"incoming/scans/{name}.nii.gz")
    return root


@pytest.fixture(scope="module")
def run(machine: Path) -> Callable[[str], str]:
    """Run one line of the page with its folders below the root folder; give what it prints."""

    def call(line: str) -> str:
        for folder in FOLDERS:
            line = line.replace(folder, f"{machine}{folder}")
        words = [sys.executable if word == "python" else word for word in line.split()]
        if words[0] == "fedmonai":  # wherever its program is installed
            words[:1] = [sys.executable, "-m", "fedmonai"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        return done.stdout

    return call


def test_commands_run_and_say_what_the_page_says(run: Callable[[str], str], machine: Path) -> None:
    """In the order of the page: the archive is verified, unpacked, linted, and has the digest of the bundle."""
    said = {line: run(line) for line in COMMANDS}
    assert said
    of = {word: text for line, text in said.items() for word in line.split() if word in ("verify", "lint")}
    assert 'Good "fedmonai-bundle" signature for lead@our.org' in of["verify"]
    assert "0 findings" in of["lint"]
    assert f"{bundle_digest(machine / 'opt/bundles/fl_mr')}\n" in said.values()
    silent = [line for line in COMMANDS if line.startswith("find ")]
    assert silent and not any(said[line] for line in silent)
    (machine / "etc/fedmonai/signers").chmod(0o666)
    state = machine / "var/lib/fedmonai/round.pt"
    state.touch()
    state.chmod(0o644)
    assert any(run(line) for line in silent[:1]) and any(run(line) for line in silent[1:2])


def test_settings_of_the_page_are_read_and_their_pin_holds(tmp_path: Path) -> None:
    (text,) = (text for kind, text in blocks(PAGE) if kind == "yaml")
    path = tmp_path / "fedmonai.yaml"
    path.write_text(text)
    settings = SiteSettings.read(path)
    assert settings.bundle_digest and set(yaml.safe_load(text)) == {
        name for name in ("bundle", "bundle_digest", "state_dir", "ids") if getattr(settings, name)
    }
    path.write_text(text.replace("/opt/bundles/fl_mr", str(ROOT / "bundles" / "fl_mr")))
    with pytest.raises(ConfigError, match="pins"):
        SiteSettings.read(path).own_bundle()


@pytest.mark.parametrize("name", VARIABLES)
def test_variables_are_those_that_the_libraries_read(name: str) -> None:
    assert f"{name}=" in PAGE.read_text()
    try:
        sources = [file for file in files(VARIABLES[name]) or () if file.suffix == ".py"]
    except PackageNotFoundError:
        pytest.skip(f"{VARIABLES[name]} is not installed")
    assert any(name in Path(str(file.locate())).read_text(encoding="utf-8", errors="replace") for file in sources)
