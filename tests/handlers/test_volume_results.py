# SPDX-License-Identifier: Apache-2.0
"""What all handlers that write results per volume share."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ignite.engine import Engine

from fedmonai.errors import ConfigError
from fedmonai.handlers.save_results import VolumeResults
from fedmonai.io import atomic_path


class SaveName(VolumeResults):
    table = "names.csv"
    columns = ("source", "file")

    def __call__(self, engine: Engine) -> None:
        name = engine.state.batch.name
        path = self.path(name, "text")
        with atomic_path(path) as partial:
            partial.write_text(name)
        if self.preview:
            self.write_preview(name, np.zeros((4, 4, 3)))
        self.add_row(f"{name}.in", path.name)

    def path(self, volume: str, kind: str) -> Path:
        return self.output_dir / f"{volume}.{kind}"

    def found(self, row: dict[str, Any]) -> str:
        return "a name"


class Folder(list):
    data = (SimpleNamespace(name="a", kind="text"), SimpleNamespace(name="b", kind="text"))
    skipped = ("c.in: damaged",)

    def __init__(self) -> None:
        super().__init__(self.data)
        self.dataset = self


def run(output_dir: Path, **options: Any) -> None:
    engine = Engine(lambda engine, batch: None)
    SaveName(str(output_dir), **{"preview": False, "overwrite": False, **options}).attach(engine)
    engine.run(Folder())


def test_files_table_and_a_line_for_each_and_for_what_was_left_out(tmp_path, capsys):
    run(tmp_path, preview=True)
    assert (tmp_path / "b.text").read_text() == "b" and (tmp_path / "previews" / "a.png").is_file()
    assert (tmp_path / "names.csv").read_text().split() == ["source,file", "a.in,a.text", "b.in,b.text"]
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{n}.in (a name) -> {tmp_path / n}.text" for n in "ab"] + ["left out: c.in: damaged"]


def test_an_existing_result_stops_it_before_anything_is_written(tmp_path):
    (tmp_path / "b.text").write_text("earlier")
    with pytest.raises(ConfigError, match=r"b\.text exists; choose another folder or set overwrite"):
        run(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.text"]
    run(tmp_path, overwrite=True)
    assert (tmp_path / "b.text").read_text() == "b"
