# SPDX-License-Identifier: Apache-2.0
"""A site of a stock federation: MONAI's own ``MonaiAlgo`` in NVFlare's Client API, as in NVFlare's MONAI examples.

Evaluates what it receives, then trains. Used by ``benchmarks/deployed.py`` as the peer; nothing of fedmonai's engine is
in it, only the bundle that both train.
"""

from __future__ import annotations

import argparse
import json

import nvflare.client as flare
import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--ids", required=True, help="overrides of the bundle's train.json, as JSON without blanks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    flare.init()
    algo = MonaiAlgo(
        bundle_root=arguments.bundle,
        local_epochs=1,
        send_weight_diff=False,
        train_kwargs=json.loads(arguments.ids),
        eval_kwargs=json.loads(arguments.ids),
    )
    algo.initialize({ExtraItems.CLIENT_NAME: flare.get_site_name()})
    while flare.is_running():
        model = flare.receive()
        if model is None:
            break
        received = ExchangeObject(weights={key: torch.as_tensor(value) for key, value in model.params.items()})
        metrics = algo.evaluate(received).metrics
        algo.train(received)
        params = {key: value.cpu() for key, value in algo.get_weights().weights.items()}
        flare.send(flare.FLModel(params=params, metrics={name: float(value) for name, value in metrics.items()}))


if __name__ == "__main__":
    main()
