# SPDX-License-Identifier: Apache-2.0
"""``fedmonai`` as a user meets it: help and lint without torch, bundles and plans by name, a demonstration."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from run_command import run_command

from fedmonai.__main__ import TABLE
from fedmonai.bundle.collection import SHIPPED, copy_bundle, plan_file, shipped_bundles, shipped_metadata
from fedmonai.command_line import Command
from fedmonai.errors import ConfigError

BUNDLES = sorted(shipped_metadata())
#: runs commands one after the other, as words of a JSON list say, and tells what each printed and what is imported then
CHILD = """
import contextlib, io, json, sys
from fedmonai.__main__ import main
said = []
for words in json.loads(sys.argv[1]):
    sys.argv, out = ["fedmonai", *words], io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main()
        except SystemExit as ended:
            print(ended.code)
    said.append([out.getvalue(), sorted({"torch", "monai", "ignite", "numpy"} & set(sys.modules))])
print(json.dumps(said))
"""


def command_paths(table: Mapping[str, Any] = TABLE, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, entry in table.items():
        yield from [(*path, name)] if isinstance(entry, Command) else command_paths(entry, (*path, name))


def test_help_misspelt_options_and_lint_import_nothing_heavy() -> None:
    helps = [[*path, "--help"] for path in command_paths()]
    misspelt = [["prepare", "mri", "--input", "x", "--chek"], ["lint", "--bundl", "x"]]
    lint = ["lint", str(shipped_bundles() / "fl_mr")]
    words = [[], ["--help"], *helps, *misspelt, lint]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(words)], capture_output=True, text=True, check=True, timeout=300
    )
    said = json.loads(done.stdout)
    assert len(said) == len(words) > len(misspelt) + 3
    for given, (text, heavy) in zip(words, said, strict=True):
        assert not heavy, given
        assert "Traceback" not in text, given
    for given, (text, _) in zip(helps, said[2:], strict=False):
        assert (f"fedmonai {' '.join(given[:-1])}" in text and "FLAGS" in text) or given == ["bundles", "--help"], given
    assert "did you mean --check?" in said[-3][0] and "did you mean --bundle?" in said[-2][0]
    assert ": 0 findings in" in said[-1][0]


def test_bundles_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert run_command(monkeypatch, "bundles") == 0
    out = capsys.readouterr().out
    assert BUNDLES and all(f"\n{name} " in f"\n{out}" for name in BUNDLES)


@pytest.mark.parametrize("name", BUNDLES)
def test_a_copy_is_the_bundle_without_data_weights_and_results(name: str, tmp_path: Path) -> None:
    target, source = copy_bundle(name, tmp_path / "new"), shipped_bundles() / name
    files = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    kept = [part for part in SHIPPED if (source / part).is_file()]
    kept += [
        path.relative_to(source).as_posix()
        for part in SHIPPED
        for path in (source / part).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert files == set(kept) and "configs/train.json" in files
    assert all((target / file).read_bytes() == (source / file).read_bytes() for file in files)


def test_mistakes_with_bundles_and_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"its bundles are {', '.join(BUNDLES)}." in run_command(monkeypatch, "copy", "nope", tmp_path / "new")
    assert "is not empty" in run_command(monkeypatch, "copy", "fl_mr", tmp_path.parent)
    assert "is no bundle" in run_command(monkeypatch, "demo", "../fl_mr", "--folder", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(
        ConfigError, match=r"plan 'nope' is no file, and none of those .*mr_own_sites.*outside/prostate"
    ):
        plan_file("nope")


def test_plans_by_path_and_by_name(tmp_path: Path) -> None:
    assert plan_file("outside/prostate").name == "prostate.yaml"
    own = tmp_path / "mr_own_sites.yaml"
    own.write_text("methods: {}\n")
    assert plan_file(str(own)) == own and plan_file("mr_own_sites") != own


def test_demonstration_runs_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess:
        ran.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr("fedmonai.commands.collection.subprocess.run", run)
    for _ in range(2):  # again: the copy that is there is used
        assert run_command(monkeypatch, "demo", "fedmri", "--folder", tmp_path / "d", "--num_rounds", 2) == 3
    root = tmp_path / "d" / "fedmri"
    assert (root / "configs" / "demo.yaml").is_file() and ran[0] == ran[1]
    assert {f"--bundle_root={root}", f"--output_dir={tmp_path / 'd' / 'runs' / 'fedmri'}", "--num_rounds=2"} <= set(
        ran[0]
    )
