# SPDX-License-Identifier: Apache-2.0
"""Command line: ``python -m fedmonai.integrations.flower --bundle bundles/fl_mr --env sim``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fire

from fedmonai.errors import ConfigError, FederationError
from fedmonai.integrations.flower.app import Trial, write_app
from fedmonai.integrations.job import describe
from fedmonai.integrations.runtime import federation_config
from fedmonai.names import as_list

ENVIRONMENTS = ("sim", "tls", "export")


def main(
    bundle: str = ".",
    federation: str | list[str] | tuple[str, ...] = (),
    env: str = "sim",
    name: str | None = None,
    output_dir: str = "runs",
    reply_timeout: float = 0.0,
    **ids: Any,
) -> None:
    """Run a bundle's federation on Flower, or write it as an app for ``flwr run``.

    Args:
        bundle: folder of the bundle.
        federation: overlay(s) after configs/federated.yaml: paths in the bundle or names in configs/federation.
        env: sim (Flower's simulation) | tls (a SuperLink and one SuperNode per site on this machine) | export.
        name: name of the run; one of the same name is continued with --resume True. Default: the bundle's folder.
        output_dir: sim, tls: where server and sites keep their runs; export: where the app is written.
        reply_timeout: seconds to wait for a site's reply; 0 for no limit.
        ids: overrides of the federation's config, as for python -m monai.bundle run; plain values only.
    """
    try:
        if env not in ENVIRONMENTS:
            raise ConfigError(f"env is '{env}'; choose one of {', '.join(ENVIRONMENTS)}.")
        overlays = as_list(federation)
        deployment = describe(bundle, overlays, name, ids=ids, reply_timeout=reply_timeout)
        folder = Path(output_dir).resolve()
        if env == "export":
            print(f"the app is in {write_app(deployment, bundle, folder / deployment.run)}")
            return
        work, state = folder / ".flower" / deployment.run, folder / deployment.run
        app = write_app(deployment, bundle, work / "app")
        sites = sorted(federation_config(deployment, Path(bundle), state)["sites"])
        trial = Trial(app, work, state)
        (trial.simulate if env == "sim" else trial.deploy)(sites)
        if not (state / "server" / "run.json").is_file():
            raise FederationError(f"no round was finished; logs are in {work}")
        print(f"results are in {state / 'server'}")
    except (ConfigError, FederationError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    fire.Fire(main)
