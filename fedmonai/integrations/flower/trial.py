# SPDX-License-Identifier: Apache-2.0
"""Flower on one machine: its simulation engine, or a SuperLink and one SuperNode per site over TLS."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedmonai.errors import FederationError
from fedmonai.integrations.flower.certificates import write_certificates
from fedmonai.integrations.runtime import STATE_ROOT
from fedmonai.integrations.site_process import end_process

__all__ = ["Trial"]

START_TIME = 300
_GRACE = 15


class Trial:
    """Flower's processes of one run on this machine; they end with it.

    Args:
        app: folder of the Flower app.
        folder: where Flower keeps its state and logs.
        state: where server and sites keep their runs, each in a folder of its own.
    """

    def __init__(self, app: Path, folder: Path, state: Path) -> None:
        self.app, self.folder = app, folder
        self.home = folder / "flower"
        self.home.mkdir(parents=True, exist_ok=True)
        self.tools = Path(sys.executable).parent
        self.environment = {
            **os.environ,
            "PATH": f"{self.tools}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLWR_HOME": str(self.home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            STATE_ROOT: str(state),
        }

    def simulate(self, sites: Sequence[str]) -> None:
        """Run with Flower's simulation engine, one virtual node per site.

        Raises:
            FederationError: when a process does not start.
        """
        port = _free_port()
        words = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
        with self._process("superlink", words, port):
            self._run(port, "insecure = true", ["--federation-config", f"num-supernodes={len(sites)}"])

    def deploy(self, sites: Sequence[str]) -> None:
        """Run with a SuperLink and one SuperNode per site, connected by TLS.

        Raises:
            FederationError: when a process does not start.
        """
        authority, certificate, key = write_certificates(self.folder / "certificates")
        port = _free_port()
        trust = f'root-certificates = "{authority}"'
        link = ["flower-superlink", "--host", "127.0.0.1", "--port", str(port), "--ssl-ca-certfile", str(authority)]
        with self._process("superlink", [*link, "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)], port):
            self._with_nodes(list(sites), port, authority, trust)

    def _with_nodes(self, sites: list[str], port: int, authority: Path, trust: str) -> None:
        if not sites:
            self._run(port, trust, [])
            return
        own = _free_port()
        words = ["flower-supernode", "--superlink", f"127.0.0.1:{port}", "--root-certificates", str(authority)]
        words += ["--host", "127.0.0.1", "--port", str(own), "--node-config", f"site='{sites[0]}'"]
        with self._process(sites[0], words, own):
            self._with_nodes(sites[1:], port, authority, trust)

    def _run(self, port: int, connection: str, options: list[str]) -> None:
        config = f'[superlink]\ndefault = "trial"\n\n[superlink.trial]\naddress = "127.0.0.1:{port}"\n{connection}\n'
        (self.home / "config.toml").write_text(config, encoding="utf-8")
        words = ["flwr", "run", str(self.app), "trial", "--stream", *options]
        subprocess.run(self._tool(words), env=self.environment, check=False)  # noqa: S603 (Flower's own command)

    def _tool(self, words: list[str]) -> list[str]:
        return [str(self.tools / words[0]), *words[1:]]

    @contextmanager
    def _process(self, name: str, words: list[str], port: int) -> Iterator[None]:
        log = self.folder / f"{name}.log"
        with open(log, "w") as stream:
            process = subprocess.Popen(  # noqa: S603 (Flower's own command)
                self._tool(words), env=self.environment, stdout=stream, stderr=subprocess.STDOUT
            )
            try:
                _await_port(port, process, log)
                yield
            finally:
                end_process(process, _GRACE)


def _free_port() -> int:
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return int(candidate.getsockname()[1])


def _await_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIME
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise FederationError(f"{log.stem} did not start; see {log}")
        time.sleep(0.5)
