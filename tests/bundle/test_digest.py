# SPDX-License-Identifier: Apache-2.0
"""The digest of a bundle holds every file of it, and a signature of its archive only for who, what and which file."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from child_processes import keygen

from fedmonai.bundle.digest import TRAVELLING, bundle_digest, bundle_files, verify_signature
from fedmonai.commands.bundle import digest, verify
from fedmonai.errors import ConfigError
from fedmonai.integrations.site_settings import SiteSettings

FL_MR = Path(__file__).parents[2] / "bundles" / "fl_mr"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    shutil.copytree(FL_MR, folder, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    (folder / "models" / "model.pt").write_bytes(b"weights")
    return folder


def test_digest_is_that_of_the_lines_that_sha256sum_prints(bundle: Path) -> None:
    lines = "".join(f"{line}\n" for line in digest(str(bundle), files=True))
    files = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    assert [line.split("  ")[1] for line in lines.splitlines()] == files
    for line in lines.splitlines():
        value, name = line.split("  ")
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == value
    assert digest(str(bundle)) == [hashlib.sha256(lines.encode()).hexdigest()]


@pytest.mark.parametrize("name", [name for _, name in bundle_files(FL_MR)] + ["models/model.pt"])
def test_one_bit_of_any_file_changes_it(name: str, bundle: Path) -> None:
    before, travelling = bundle_digest(bundle), bundle_digest(bundle, TRAVELLING)
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    assert bundle_digest(bundle) != before
    assert (bundle_digest(bundle, TRAVELLING) != travelling) is (name.split("/")[0] in TRAVELLING)


CHANGES: dict[str, Callable[[Path], object]] = {
    "new": lambda bundle: (bundle / "models" / "new.pt").write_bytes(b""),
    "gone": lambda bundle: (bundle / "LICENSE").unlink(),
    "renamed": lambda bundle: (bundle / "docs" / "ids.md").rename(bundle / "docs" / "names.md"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_more_less_or_under_another_name_changes_it(change: str, bundle: Path) -> None:
    before = bundle_digest(bundle)
    CHANGES[change](bundle)
    assert bundle_digest(bundle) != before


def test_what_has_no_digest(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder; unpack its archive first"):
        bundle_digest(tmp_path / "fl_mr.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no files"):
        bundle_digest(tmp_path / "empty")
    (bundle / "models" / "other.pt").symlink_to(tmp_path / "elsewhere.pt")
    with pytest.raises(ConfigError, match=r"models/other.pt is a link"):
        bundle_digest(bundle)


def test_pinned_bundle_of_a_site(bundle: Path) -> None:
    settings = SiteSettings(bundle=str(bundle), bundle_digest=bundle_digest(bundle))
    assert settings.own_bundle() == str(bundle)
    (bundle / "models" / "model.pt").write_bytes(b"others")
    with pytest.raises(ConfigError, match=r"is not the one that bundle_digest of its fedmonai\.yaml pins"):
        settings.own_bundle()
    assert SiteSettings(bundle=str(bundle)).own_bundle() == str(bundle)
    assert SiteSettings().own_bundle() is None


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an archive, its signature by lead@our.org, and the site's list of signers."""
    folder = tmp_path_factory.mktemp("signed")
    for name in ("lead", "other"):
        keygen("-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name)
    public = (folder / "lead.pub").read_text()
    (folder / "signers").write_text(f"lead@our.org {public}")
    archive = Path(shutil.make_archive(str(folder / "fl_mr"), "zip", FL_MR.parent, FL_MR.name))
    keygen("-Y", "sign", "-n", "fedmonai-bundle", "-f", folder / "lead", archive)
    return folder


def test_good_signature(signed: Path) -> None:
    said = verify(str(signed / "fl_mr.zip"), str(signed / "signers"), "lead@our.org")
    assert 'Good "fedmonai-bundle" signature for lead@our.org' in said


def spoil_archive(folder: Path) -> None:
    path = folder / "fl_mr.zip"
    path.write_bytes(path.read_bytes() + b"\0")


def other_key(folder: Path) -> None:
    (folder / "fl_mr.zip.sig").unlink()
    keygen("-Y", "sign", "-n", "fedmonai-bundle", "-f", folder / "other", folder / "fl_mr.zip")


def other_purpose(folder: Path) -> None:
    (folder / "fl_mr.zip.sig").unlink()
    keygen("-Y", "sign", "-n", "file", "-f", folder / "lead", folder / "fl_mr.zip")


def no_signature(folder: Path) -> None:
    (folder / "fl_mr.zip.sig").write_text("junk")


@pytest.mark.parametrize("spoil", [spoil_archive, other_key, other_purpose, no_signature])
def test_signature_that_is_not_good(spoil: Callable[[Path], None], signed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(signed, folder)
    spoil(folder)
    with pytest.raises(ConfigError, match=r"is not signed by 'lead@our.org' \(.+\); do not use it") as caught:
        verify_signature(folder / "fl_mr.zip", folder / "signers", "lead@our.org")
    assert "\n" not in str(caught.value)


def test_mistakes_in_the_command(signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, signers = str(signed / "fl_mr.zip"), str(signed / "signers")
    with pytest.raises(ConfigError, match=r"'.*' is not signed by 'boss@our.org'"):
        verify(archive, signers, "boss@our.org")
    with pytest.raises(ConfigError, match="signature: there is no file"):
        verify(archive, signers, "lead@our.org", str(signed / "none.sig"))
    with pytest.raises(ConfigError, match="identity: '-f' is none of"):
        verify(archive, signers, "-f")
    monkeypatch.setenv("PATH", str(signed))
    with pytest.raises(ConfigError, match="ssh-keygen is not installed"):
        verify(archive, signers, "lead@our.org")
