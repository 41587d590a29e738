# SPDX-License-Identifier: Apache-2.0
"""Build sdist and wheel, install the wheel where the project is not, and try it: ``make package``.

The new environment has the wheel alone; what that needs it reads from the environment of this Python, which was
installed at the versions of constraints.txt. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: what is run with the wheel, in an empty folder
COMMANDS = (
    "fedmonai bundles",
    "fedmonai copy fedmri mine",
    "fedmonai lint mine",
    "fedmonai ids mine --find base_channels",
    "fedmonai demo --folder demo --num_rounds 2",
    "fedmonai report demo/runs/fl_mr",
)
#: what they leave behind
LEFT = ("mine/configs/train.json", "demo/fl_mr/configs/federated.yaml", "demo/runs/fl_mr/report.md")


def run(*command: str | Path, folder: Path = ROOT) -> None:
    """Run a command; end the program where it fails."""
    print("$", *(Path(word).name if isinstance(word, Path) else word for word in command), flush=True)
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    code = subprocess.run(list(map(str, command)), cwd=folder, env=environment, check=False).returncode  # noqa: S603
    if code:
        sys.exit(f"error: exit code {code}")


def installed(wheel: Path, folder: Path) -> Path:
    """Install a wheel in a new environment beside what is installed here; the folder of its commands."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = (sys.executable, "-m", "pip", "--python", str(programs / "python"))
    # first the wheel: beside an installation of the same version pip would do nothing
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel)
    site = subprocess.check_output(  # noqa: S603
        [str(programs / "python"), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    here = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    Path(site.strip(), "dependencies.pth").write_text("".join(f"{path}\n" for path in here), encoding="utf-8")
    run(*pip, "check")
    return programs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder of the distributions")
    output = parser.parse_args().output.resolve()
    for old in output.glob("fedmonai-*"):
        old.unlink()
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", output, ROOT)
    (wheel,) = output.glob("*.whl")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        programs, work = installed(wheel, folder / "environment"), folder / "work"
        work.mkdir()
        own = "import fedmonai as found, sys; sys.exit(0 if found.__file__.startswith(sys.prefix) else found.__file__)"
        run(programs / "python", "-c", own, folder=work)
        for command in COMMANDS:
            program, *words = command.split()
            run(programs / program, *words, folder=work)
        if missing := [path for path in LEFT if not (work / path).is_file()]:
            sys.exit(f"error: {missing[0]} was not written")
        size = sum(path.stat().st_size for path in output.glob("fedmonai-*"))
        print(f"{wheel.name} works; sdist and wheel, {size / 1e6:.1f} MB, are in {output}")


if __name__ == "__main__":
    main()
