# SPDX-License-Identifier: Apache-2.0
"""Lock a site's installation: its wheels, a requirements file with their hashes, and a bill of materials.

At the site or in its image, with the Python that will run (standard library and pip alone):

    python deploy/lock.py make --output lock --extras nvflare,privacy
    python deploy/lock.py install --lock lock

``make`` collects the wheels at the versions of constraints.txt from the index that pip is configured for; of torch it
takes the build that this index serves, and the lock holds the hash of that build. No address of an index is written.
``install`` uses these files alone (``--no-index --require-hashes``): it stops at a changed byte or an unlisted file.
With the optional tool cyclonedx-bom installed for this Python, ``make`` also writes ``sbom.json`` (CycloneDX).
Arguments after ``--`` are passed to pip: ``make ... -- --no-index --find-links wheels``.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK, WHEELS, SBOM = "requirements.lock", "wheels", "sbom.json"


def make(output: Path, package: str, extras: str, constraint: Path | None, options: list[str]) -> None:
    """Collect the wheels of a package and of all it needs, and write the lock."""
    wheels = output / WHEELS
    if output.exists() and any(output.iterdir()):
        sys.exit(f"error: {output} is not empty; a lock holds one installation. Give a new folder.")
    wheels.mkdir(parents=True)
    wanted = f"{package}[{extras}]" if extras else package
    constraints = [] if constraint is None else ["--constraint", str(constraint)]
    run("wheel", "--quiet", "--wheel-dir", str(wheels), *constraints, *options, wanted)
    found = [identity(wheel) for wheel in sorted(wheels.glob("*.whl"))]
    lines = [f"{name}=={version} --hash=sha256:{digest}" for name, version, digest in found]
    (output / LOCK).write_text("\n".join(sorted(lines, key=str.lower)) + "\n", encoding="utf-8")
    print(f"{output / LOCK}: {len(lines)} packages with their hashes")
    materials(output)


def install(lock: Path, options: list[str]) -> None:
    """Install what is locked, from its folder alone."""
    if not (lock / LOCK).is_file():
        sys.exit(f"error: there is no {LOCK} in {lock}; make one: python deploy/lock.py make --output {lock}")
    files = ["--no-index", "--find-links", str(lock / WHEELS), "--requirement", str(lock / LOCK)]
    run("install", "--require-hashes", "--no-deps", "--only-binary", ":all:", *files, *options)


def materials(output: Path) -> None:
    """The bill of materials of what is locked, if its tool is there."""
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", str(output / LOCK), "-o", str(output / SBOM)]
    if importlib.util.find_spec("cyclonedx_py") is None:
        print(f"no {SBOM}: pip install cyclonedx-bom, then {' '.join(['python', *command[1:]])}")
    elif subprocess.run(command, check=False).returncode:  # noqa: S603
        sys.exit(f"error: cyclonedx-bom could not write {output / SBOM}; its message is above.")


def identity(wheel: Path) -> tuple[str, str, str]:
    """Name and version that a wheel's metadata give, and its SHA-256."""
    with zipfile.ZipFile(wheel) as archive:
        names = (name for name in archive.namelist() if name.count("/") == 1)
        member = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(member).decode("utf-8"))
    digest = hashlib.sha256()
    with open(wheel, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return metadata["Name"], metadata["Version"], digest.hexdigest()


def run(*arguments: str) -> None:
    if subprocess.run([sys.executable, "-m", "pip", *arguments], check=False).returncode:  # noqa: S603
        sys.exit("error: pip failed; its message is above.")


def main(arguments: list[str]) -> None:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    own, options = arguments[:end], arguments[end + 1 :]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kinds = parser.add_subparsers(dest="command", required=True)
    making = kinds.add_parser("make", help="collect wheels and write the lock")
    making.add_argument("--output", type=Path, required=True, help="new folder for the lock and its wheels")
    making.add_argument("--package", default=str(ROOT), help="what is installed; default: this project")
    making.add_argument("--extras", default="", help="extras of the package, such as nvflare,privacy")
    making.add_argument("--constraint", type=Path, default=ROOT / "constraints.txt", help="their versions")
    making.add_argument("--no-constraint", action="store_true", help="whatever versions the index gives")
    installing = kinds.add_parser("install", help="install what is locked")
    installing.add_argument("--lock", type=Path, required=True, help="the folder that make has written")
    given = parser.parse_args(own)
    if given.command == "make":
        make(given.output, given.package, given.extras, None if given.no_constraint else given.constraint, options)
    else:
        install(given.lock, options)


if __name__ == "__main__":
    main(sys.argv[1:])
