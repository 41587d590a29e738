# SPDX-License-Identifier: Apache-2.0
"""Command line: ``python -m fedmonai.integrations.nvflare --bundle bundles/fl_mr --env sim``."""

from __future__ import annotations

import sys
from typing import Any

import fire

from fedmonai.errors import ConfigError, FederationError
from fedmonai.names import as_list


def main(
    bundle: str = ".",
    federation: str | list[str] | tuple[str, ...] = (),
    env: str = "sim",
    name: str | None = None,
    output_dir: str | None = None,
    startup_kit: str | None = None,
    username: str = "admin@nvidia.com",
    byoc: bool = False,
    isolate: bool | None = None,
    reply_timeout: float = 0.0,
    min_clients: int | None = None,
    threads: int | None = None,
    **ids: Any,
) -> None:
    """Run a bundle's federation on NVFlare, or write or submit it as a job.

    Args:
        bundle: folder of the bundle.
        federation: overlay(s) after configs/federated.yaml: paths in the bundle or names in configs/federation.
        env: sim (one machine, simulator) | poc (one machine, real processes and certificates) | export (write the job)
            | prod (submit it with a startup kit).
        name: name of the run; a job of the same name continues it with --resume True. Default: the bundle's folder.
        output_dir: sim, poc: where server and sites keep their runs; export: where the job is written.
        startup_kit: prod: folder of the admin's startup kit.
        username: prod: name of the admin in that kit.
        byoc: let the job bring the client's script instead of naming installed classes.
        isolate: train in a process of its own, so that one that dies costs a local training and is started again.
            Default: yes, but for sim.
        reply_timeout: seconds to wait for a site's reply; 0 for no limit.
        min_clients: participants that must be connected. Default: all (sim, poc), min_sites (export, prod).
        threads: sim: processes at a time. Default: as many as sites.
        ids: overrides of the federation's config, as for python -m monai.bundle run; plain values only.
    """
    try:
        from fedmonai.integrations.nvflare.environments import deploy

        options: dict[str, Any] = {"byoc": byoc, "min_clients": min_clients, "threads": threads}
        options |= {"startup_kit": startup_kit, "username": username, "output_dir": output_dir}
        overlays = as_list(federation)
        described: dict[str, Any] = {"run": name, "ids": ids, "isolate": env != "sim" if isolate is None else isolate}
        described |= {"reply_timeout": reply_timeout}
        print(deploy(bundle, overlays, env, described, **options))
    except (ConfigError, FederationError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    fire.Fire(main)
