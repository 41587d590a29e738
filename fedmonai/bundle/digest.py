# SPDX-License-Identifier: Apache-2.0
"""Digest of a bundle and signature of its archive, for a site to compare with what it has reviewed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from fedmonai.errors import ConfigError, first_line

__all__ = ["TRAVELLING", "bundle_digest", "bundle_files", "verify_signature"]

PathLike = str | os.PathLike[str]
#: parts of a bundle that go with a job; weights, data and results do not
TRAVELLING = ("LICENSE", "configs", "docs")
#: purpose of our signatures; one made for another purpose is refused
NAMESPACE = "fedmonai-bundle"
_BLOCK = 1 << 20


def bundle_files(bundle: PathLike, parts: Iterable[str] | None = None) -> list[tuple[str, str]]:
    """SHA-256 and path of every file of a bundle, in the order of the paths; ``sha256sum -c`` reads such lines.

    Args:
        bundle: its folder.
        parts: entries of the folder to look at; None for all of them: configs, docs, weights and all else.
            Hidden files and byte code are no part of a bundle.

    Raises:
        ConfigError: no such folder, nothing in it, or a link, whose target is not in the bundle.
    """
    root = Path(bundle)
    if not root.is_dir():
        raise ConfigError(f"bundle '{bundle}' is no folder; unpack its archive first.")
    found = []
    for path in sorted(root.rglob("*"), key=lambda path: path.relative_to(root).as_posix()):
        inside = path.relative_to(root)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in inside.parts)
        if hidden or (parts is not None and inside.parts[0] not in parts):
            continue
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ConfigError(f"bundle '{bundle}': {inside} is a link or no plain file; a digest would not hold it.")
        if path.is_file():
            found.append((_file_digest(path), inside.as_posix()))
    if not found:
        raise ConfigError(f"bundle '{bundle}' holds no files.")
    return found


def bundle_digest(bundle: PathLike, parts: Iterable[str] | None = None) -> str:
    """SHA-256 over names and contents of all files of a bundle: of the lines that :func:`bundle_files` gives."""
    lines = "".join(f"{digest}  {name}\n" for digest, name in bundle_files(bundle, parts))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}).") from error
    return digest.hexdigest()


def verify_signature(archive: PathLike, signers: PathLike, identity: str, signature: PathLike | None = None) -> str:
    """Check who signed an archive, offline, by ``ssh-keygen -Y verify``.

    Args:
        archive: the file as it was received; it is not unpacked.
        signers: OpenSSH's list of allowed signers, which the site keeps: ``lead@our.org ssh-ed25519 AAAA...``.
        identity: who must have signed it.
        signature: made by ``ssh-keygen -Y sign -n fedmonai-bundle -f KEY ARCHIVE``; default ``<archive>.sig``.

    Returns:
        What OpenSSH says of the good signature, with the fingerprint of the key.

    Raises:
        ConfigError: a missing file, no OpenSSH, or a signature that is not good for this file, identity and purpose.
    """
    program = shutil.which("ssh-keygen")
    if program is None:
        raise ConfigError("ssh-keygen is not installed; install OpenSSH 8.2 or newer, or check the file with minisign.")
    files = {"archive": archive, "signature": signature or f"{archive}.sig", "signers": signers}
    for name, path in files.items():
        if not Path(path).is_file():
            raise ConfigError(f"{name}: there is no file '{path}'.")
    if not identity or identity.startswith("-"):
        raise ConfigError(f"identity: '{identity}' is none of '{signers}'; give the name that stands there.")
    command = [program, "-Y", "verify", "-n", NAMESPACE, "-I", identity]
    command += ["-f", str(Path(signers).absolute()), "-s", str(Path(files["signature"]).absolute())]
    with open(archive, "rb") as stream:
        done = subprocess.run(command, stdin=stream, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        reason = first_line(Exception(done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"))
        raise ConfigError(
            f"'{archive}' is not signed by '{identity}' ({reason}); do not use it, and ask who sent it. A signature is "
            f"made with the purpose '{NAMESPACE}'."
        )
    return done.stdout.strip()
