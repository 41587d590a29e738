# SPDX-License-Identifier: Apache-2.0
"""The bound on the norm of updates refuses no honest site of any bundle, be it rarely asked or far more trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow
from run_results import rounds
from tiny_sites import BUNDLES, tiny_data, tiny_federation_ids

from fedmonai.federated.validation import MAX_NORM_RATIO


@pytest.mark.parametrize("fraction", [1.0, 0.3])
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_no_honest_site_is_refused(
    bundle: Path, fraction: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site makes ten times the steps; five sites measure each other, two of them what was before.

    Half of the default bound leaves room for sites that are less alike than these.
    """
    file = bundle / "configs" / "federated.yaml"
    assert ConfigParser.load_config_file(file)["guard"]["max_norm_ratio"] == MAX_NORM_RATIO
    out = tmp_path / "run"
    ids = {"bundle_root": str(bundle), "output_dir": str(out), "device": "cpu", "fraction": fraction}
    ids |= {"num_rounds": 4 if fraction < 1 else 2, "guard::max_norm_ratio": MAX_NORM_RATIO / 2}
    ids |= tiny_federation_ids(bundle, dict.fromkeys("ABCDE", tiny_data(bundle, tmp_path)))
    workflow = ConfigWorkflow(str(file), workflow_type="train", logging_file=False, **ids)
    workflow.initialize()
    engine = workflow.parser.get_parsed_content("federation")
    # the question is what is sent, not how good it is
    monkeypatch.setattr(engine.evaluations, "validate", lambda *args: ({}, []))
    monkeypatch.setattr(engine.evaluations, "test", lambda *args: ([], {}))
    engine.prepare()
    busy = engine.participants(2)[-1]
    site = engine.sites.open(busy)
    site.local_steps = 10 * (site.local_steps or site.local_epochs * len(site.trainer.data_loader))
    engine.run()
    assert engine.usual_norm.ratio == MAX_NORM_RATIO / 2
    assert not any(record["failed"] for record in rounds(out))
    assert busy in rounds(out)[1]["completed"]
