# SPDX-License-Identifier: Apache-2.0
"""The baseline hands its input through an evaluator without touching the network."""

from __future__ import annotations

import torch
from monai.engines import SupervisedEvaluator

from fedmonai.networks.inferers import IdentityInferer


def test_the_evaluator_predicts_its_input():
    image = torch.rand(2, 1, 4, 4)

    def refuse(*args):
        raise AssertionError("the network must not be called")

    network = torch.nn.Identity()
    network.forward = refuse
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": image, "label": image}],
        network=network,
        inferer=IdentityInferer(),
        decollate=False,
    )
    evaluator.run()
    assert torch.equal(evaluator.state.output["pred"], image)
