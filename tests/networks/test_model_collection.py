# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fedmonai.errors import ConfigError
from fedmonai.networks.model_collection import collect_models, with_weights
from fedmonai.networks.segmentation_unet import SegmentationUNet


def state(value: float, count: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((2,), value), "count": torch.tensor(count)}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    for name, content in {"B": state(3.0, 5), "A": state(1.0, 4), "model": state(10.0, 9)}.items():
        torch.save(content, tmp_path / "models" / f"{name}.pt")
    (tmp_path / "run.json").write_text(json.dumps({"train_sites": ["B", "A"]}))
    return tmp_path


def test_experts_are_sorted_and_the_global_one_is_last(run: Path) -> None:
    models = collect_models(run, "C")
    assert models.names == ["A", "B", "global"]
    assert [models.personal[name]["weight"][0].item() for name in ("A", "B")] == [1.0, 3.0]
    assert models.global_state["weight"][0].item() == 10.0


def test_mean_is_of_the_personal_models_only(run: Path) -> None:
    mean = collect_models(run, "C").mean_of_personals()
    assert mean["weight"].tolist() == [2.0, 2.0]
    assert mean["count"].item() == 9 and mean["count"].dtype == torch.int64


@pytest.mark.parametrize(
    ("outside", "broken", "text"),
    [
        ("A", None, "'A' trained in this federation"),
        ("C", "A.pt", "no personal model of site 'A'"),
        ("C", "model.pt", "global_model: there is no file"),
        ("C", "../run.json", "run.json cannot be read"),
    ],
)
def test_mistakes(run: Path, outside: str, broken: str | None, text: str) -> None:
    if broken:
        (run / "models" / broken).resolve().unlink()
    with pytest.raises(ConfigError, match=text):
        collect_models(run, outside)


def test_nothing_to_collect_and_models_of_another_network(run: Path) -> None:
    with pytest.raises(ConfigError, match="run_dir: give the folder"):
        collect_models()
    torch.save({"weight": torch.zeros(3), "count": torch.tensor(1)}, run / "models" / "A.pt")
    with pytest.raises(ConfigError, match=r"model 'A': tensor 'weight' is \(3,\), but \(2,\)"):
        collect_models(run, "C")


def test_with_weights_takes_all_or_nothing() -> None:
    given = SegmentationUNet(base_channels=2, num_pool=1).state_dict()
    network = with_weights(SegmentationUNet(base_channels=2, num_pool=1), given)
    assert all(torch.equal(value, given[key]) for key, value in network.state_dict().items())
    with pytest.raises(ConfigError, match="channels"):
        with_weights(SegmentationUNet(base_channels=4, num_pool=1), given)
