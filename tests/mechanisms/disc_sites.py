# SPDX-License-Identifier: Apache-2.0
"""Sites of discs for the mechanisms of IOP-FL: what they outline and how they look is chosen, the rest is chance.

A case is three slices of 24 x 24 pixels with one disc, of 4 or 5 pixels radius, somewhere in noise. Sites outline the
whole disc or one half of it, and show it bright or dark. The same seed makes the same discs at every site.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigWorkflow

from fedmonai.federated.federation import Federation
from fedmonai.federated.local_pool import LocalPool
from fedmonai.federated.plan import SitePlan
from fedmonai.methods.averaging import WeightedMean

BUNDLE = Path(__file__).parents[2] / "bundles" / "iop_fl"
SIZE = 24
NETWORK = {"base_channels": 4, "num_pool": 2, "folder": ".", "device": "cpu", "batch_size": 4}
CASES = {"train": 5, "val": 1, "test": 3}


def write_site(root: Path, outlined: str = "whole", bright: bool = True, seed: int = 0) -> None:
    """Write a site.

    Args:
        outlined: ``whole``, ``left`` or ``right``: what the masks hold of a disc; halves are equal in size.
        bright: discs are bright on dark, or dark on bright.
        seed: of places, sizes and noise.
    """
    generator = np.random.RandomState(seed)
    root.mkdir(parents=True)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for split, count in CASES.items():
        names = [f"{split}{number}" for number in range(count)]
        (root / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            middle, radius = generator.randint(6, SIZE - 6, 2), generator.choice([4.0, 5.0])
            # the middle lies between two columns, so that no pixel is in both halves
            inside = np.hypot(rows - middle[0], columns - middle[1] + 0.5) < radius
            half = columns < middle[1] if outlined == "left" else columns >= middle[1]
            label = (inside if outlined == "whole" else inside & half).astype(np.uint8)
            image = (3.0 if bright else -3.0) * inside + generator.randn(SIZE, SIZE)
            for values, ending in ((image.astype(np.float32), ""), (label, "_segmentation")):
                volume = np.repeat(values.T[:, :, None], 3, axis=2)  # axes left, posterior, superior
                nib.save(nib.Nifti1Image(volume, np.diag([-1.0, -1.0, 3.0, 1.0])), root / f"{name}{ending}.nii.gz")


def federated(data: Path, out: Path, sites: Sequence[str], seed: int, rounds: int = 8, **ids: Any) -> dict[str, Any]:
    """Train a federation with personal models; test Dice of the last round, ``{model: {site: mean over cases}}``."""
    local = {**NETWORK, "lr": 0.01, "augment_prob": 0.0, **ids}
    specs = {name: {"dataset_dir": str(data / name)} for name in sites}
    plan = SitePlan(str(BUNDLE), specs, out, local=local, seed=seed, local_epochs=4)
    engine = Federation(LocalPool(plan), WeightedMean("samples"), rounds, key_metric="dice", val_interval=rounds)
    engine.run()
    lines = [line.split(",") for line in (out / "metrics.csv").read_text().splitlines()]
    names, found = lines[0], [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    assert {"round", "site", "model", "split", "metric", "value"} <= set(names)
    results: dict[str, Any] = {}
    for row in found:
        if row["split"] == "test" and row["metric"] == "dice" and int(row["round"]) > 0:
            results.setdefault(row["model"], {})[row["site"]] = float(row["value"])
    return results


def adapted(data: Path, run: Path, out: Path, site: str, seed: int, **ids: Any) -> dict[str, Any]:
    """Adapt what a federation left to a site, and return ``adaptation.json``."""
    files = [str(BUNDLE / "configs" / name) for name in ("train.json", "outside.yaml")]
    own = {"bundle_root": str(BUNDLE), "run_dir": str(run), "output_dir": str(out), "site": site, "seed": seed}
    own |= {"dataset_dir": str(data / site), "central_share": 1.0, "validate::additional_metrics": {}}
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, **{**NETWORK, **own, **ids})
    workflow.initialize()
    torch.manual_seed(seed)
    workflow.run()
    found: dict[str, Any] = json.loads((out / "adaptation.json").read_text())
    return found


def mean(values: Mapping[str, float]) -> float:
    """Mean over sites."""
    return sum(values.values()) / len(values)
