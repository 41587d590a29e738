# SPDX-License-Identifier: Apache-2.0
"""The Flower app of a federation, and its run on one machine: simulated, or over TLS with certificates for one day."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedmonai.errors import FederationError
from fedmonai.integrations.job import Deployment, packed, stage
from fedmonai.integrations.site_settings import STATE_ROOT
from fedmonai.integrations.worker import end_process

__all__ = ["Trial", "write_app", "write_certificates"]

START_TIME = 300
_GRACE = 15
_PROJECT = """[project]
name = "fedmonai-job"
version = "1.0.0"
description = "A federation of fedmonai: {run}"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedmonai"

[tool.flwr.app.components]
serverapp = "fedmonai_app:server"
clientapp = "fedmonai_app:client"

[tool.flwr.app.config]
settings = ""
"""
#: what travels with the app: two names for Flower to load, made by the installed package
_SCRIPT = '''# SPDX-License-Identifier: Apache-2.0
"""The apps of a federation of fedmonai."""

from pathlib import Path

from fedmonai.integrations.flower.client import client_app
from fedmonai.integrations.flower.server import server_app

server = server_app(Path(__file__).with_name("fedmonai_job.json"))
client = client_app(Path(__file__).with_name("fedmonai_job.json"))
'''


def write_app(deployment: Deployment, bundle: str | Path, folder: str | Path) -> Path:
    """Write the app; an earlier one in the folder is replaced.

    Flower carries Python, TOML, Markdown, YAML and JSON files only, so the job travels as one JSON file.

    Returns:
        the folder.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as staged:
        stage(deployment, bundle, staged)
        (target / "fedmonai_job.json").write_text(packed(staged), encoding="utf-8")
    (target / "fedmonai_app.py").write_text(_SCRIPT, encoding="utf-8")
    (target / "pyproject.toml").write_text(_PROJECT.format(run=deployment.run), encoding="utf-8")
    return target


def write_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """Write ``ca.crt``, ``server.crt`` and ``server.key`` and return their paths. The authority's key is not kept."""
    folder.mkdir(parents=True, exist_ok=True)
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority, server = _name("fedmonai trial authority"), _name("localhost")
    own = _builder(authority, authority, authority_key.public_key())
    own = own.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    signed = _builder(server, authority, server_key.public_key())
    alternatives = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    signed = signed.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    paths = folder / "ca.crt", folder / "server.crt", folder / "server.key"
    paths[0].write_bytes(own.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(signed.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    paths[2].touch(mode=0o600)
    paths[2].write_bytes(
        server_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))


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
