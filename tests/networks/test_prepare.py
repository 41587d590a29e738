# SPDX-License-Identifier: Apache-2.0
"""Weights fit as a whole or the error names the first tensor that does not."""

from __future__ import annotations

import pickle

import pytest
import torch

from fedmonai.errors import ConfigError
from fedmonai.networks.prepare import load_weights


@pytest.mark.parametrize("nested", [False, True])
def test_all_tensors_are_taken(tmp_path, nested):
    given, network = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    state = given.state_dict()
    torch.save({"model": state} if nested else state, tmp_path / "m.pt")
    assert load_weights(network, tmp_path / "m.pt") is network
    assert torch.equal(network.weight, given.weight) and torch.equal(network.bias, given.bias)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"weight": torch.zeros(2, 3)}, "'bias' is absent in the file"),
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, r"'weight' is \(2, 4\) in the file and \(2, 3\)"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "more": torch.zeros(1)}, "'more' is .* absent in the n"),
        ([1, 2], "holds no state dict"),
    ],
)
def test_other_weights_change_nothing(tmp_path, state, text):
    network = torch.nn.Linear(3, 2)
    before = network.weight.clone()
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(ConfigError, match=text):
        load_weights(network, tmp_path / "m.pt")
    assert torch.equal(network.weight, before)


class _Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_files_that_are_no_weights(tmp_path, capsys):
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(_Evil()))
    (tmp_path / "text.pt").write_text("hello")
    for name in ("evil", "text"):
        with pytest.raises(ConfigError, match=f"{name}.pt' is not a readable file of tensors"):
            load_weights(torch.nn.Linear(1, 1), tmp_path / f"{name}.pt")
    assert "executed" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match="ckpt_path: there is no file"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "none.pt")
