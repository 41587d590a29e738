# SPDX-License-Identifier: Apache-2.0
"""What a run leaves in its folder, read and compared by the tests of all rooms."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from torch import Tensor

from fedmonai.federated.federation import Federation


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts have the same keys and are equal to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def same_run(first: Path, second: Path) -> bool:
    """Whether every model and every metric of the first run is in the second one, equal to the bit."""
    models = [path.name for path in (first / "models").iterdir()]
    tables = [path.name for path in first.glob("*.csv")]
    assert models and tables
    texts = all((first / name).read_text() == (second / name).read_text() for name in tables)
    return texts and all(same(load(first / "models" / name), load(second / "models" / name)) for name in models)


def load(path: Path) -> Any:
    """The content of a file of tensors."""
    return torch.load(path, weights_only=True)


def final(out: Path) -> dict[str, Tensor]:
    """The global weights after the last round."""
    return load(out / "models" / "model_final.pt")


def site_state(out: Path, site: str, number: int = 3) -> dict[str, Any]:
    """What a site keeps after a round."""
    return load(out / "sites" / site / f"round_{number:04d}.pt")


def rounds(out: Path) -> list[dict[str, Any]]:
    """The records of all rounds."""
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


def tensor_bytes(out: Path) -> list[dict[tuple[str, str, str, str], int]]:
    """Bytes of the tensors of every round both ways, by site, kind and item; without those of the join."""
    return [
        {
            (way, site, kind, item): size
            for way in ("bytes_up", "bytes_down")
            for site, kinds in line[way].items()
            for kind, items in kinds.items()
            for item, size in items.items()
            if kind != "join" and item != "facts"
        }
        for line in rounds(out)
    ]


def rows(path: Path, **wanted: str) -> list[dict[str, str]]:
    """The rows of a table whose columns hold the wanted texts: rows(out / "metrics.csv", site="A")."""
    with path.open() as stream:
        return [row for row in csv.DictReader(stream) if all(row[key] == text for key, text in wanted.items())]


class Interrupt:
    """A user's handler that ends the process's work after two rounds, before the second is committed."""

    def attach(self, engine: Federation) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED(once=2), self)

    def __call__(self, engine: Federation) -> None:
        raise KeyboardInterrupt
