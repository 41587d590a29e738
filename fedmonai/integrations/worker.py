# SPDX-License-Identifier: Apache-2.0
"""Service of a site in this process, or in a worker process whose end loses one local training only.

A GPU that runs out of memory, a crash inside a reader or an operator's ``kill`` end the process that trains. The
runtime's own process continues, reports it to the server, and starts another one for the next request; private state is
on disk.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias, cast

from torch import Tensor

from fedmonai.bundle.lint_merged import isolated
from fedmonai.errors import ConfigError
from fedmonai.federated.frames import read_frame, write_frame
from fedmonai.federated.messages import Reply, Request, pack_reply, unpack_request
from fedmonai.federated.release import reason_told
from fedmonai.federated.service import SiteService
from fedmonai.integrations.job import Deployment
from fedmonai.integrations.runtime import site_service
from fedmonai.integrations.site_settings import SETTINGS, STATE_ROOT, SiteSettings

__all__ = ["LocalSite", "Packed", "SiteEnd", "SiteProcess", "end_process", "site_end"]

logger = logging.getLogger(__name__)


#: seconds between asking a process to end and killing it
_GRACE = 10.0
#: umask of a site's processes: state, private weights and tables are the site's user's alone
PRIVATE = 0o077


#: a request or a reply as it travels, see :func:`~fedmonai.federated.messages.pack_request`
Packed: TypeAlias = tuple[dict[str, Tensor], dict[str, Any]]


class SiteEnd(Protocol):
    """Endpoint of a site, as a runtime uses it."""

    def forward(self, packed: Packed) -> Packed:
        """The packed reply to a packed request; never an exception.

        The tensors of a request are forwarded as they came, and unpacked only where the site works.
        """

    def close(self) -> None:
        """Release everything."""


def site_end(folder: str | Path, name: str, kit: str | Path) -> SiteEnd:
    """Make the endpoint of a job at a site, as the job's description asks for it.

    Args:
        folder: where the job's files are.
        name: the site.
        kit: the site's startup kit; ``local/fedmonai.yaml`` in it holds what the site decides for itself.
    """
    kind = SiteProcess if Deployment.read(folder).isolate else LocalSite
    return kind(folder, name, Path(kit, "local", SETTINGS), kit)


class LocalSite:
    """A site in this process, built with the first request.

    Args:
        folder: where the job's files are.
        name: the site.
        settings: file of what the site decides for itself.
        root: where its state goes if neither that file nor the environment says so.
        required: whether somebody named that file, so that it must be there.
    """

    def __init__(
        self, folder: str | Path, name: str, settings: str | Path, root: str | Path, required: bool = False
    ) -> None:
        os.umask(PRIVATE)
        self.folder, self.name, self.settings, self.root = folder, name, settings, root
        self.required = required
        self._service: SiteService | None = None

    def answer(self, request: Request) -> Reply:
        """The site's reply; a site that cannot be built reports that to the server."""
        try:
            if self._service is None:
                settings = SiteSettings.read(self.settings, self.required)
                self._service = site_service(self.folder, self.name, settings, self.root)
            return self._service.answer(request)
        except Exception as error:  # whatever it is, the server is told the reason
            return self._failed(error)

    def forward(self, packed: Packed) -> Packed:
        """The site's packed reply to a packed request."""
        try:
            request = unpack_request(*packed)
        except ConfigError as error:  # of another version, or unreadable
            return pack_reply(self._failed(error))
        return pack_reply(self.answer(request))

    def _failed(self, error: Exception) -> Reply:
        return Reply(error=reason_told(error, STATE_ROOT in os.environ, Path(self.root, "fedmonai")))

    def close(self) -> None:
        """Release the site's folder."""
        if self._service is not None:
            self._service.close()
            self._service = None


class SiteProcess:
    """A site in a process of its own, started with the first request and again whenever it has died.

    It takes the arguments of :class:`LocalSite` but the last.
    """

    def __init__(self, folder: str | Path, name: str, settings: str | Path, root: str | Path) -> None:
        self.arguments = [str(folder), name, str(settings), str(root)]
        self._process: subprocess.Popen[bytes] | None = None

    def forward(self, packed: Packed) -> Packed:
        """The process's reply; if there is none, how it ended."""
        if self._process is None or self._process.poll() is not None:
            self._process = self._started()
        process = self._process
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 (for mypy; pipes were asked for)
        try:
            write_frame(cast(BinaryIO, process.stdin), *packed)
            frame = read_frame(cast(BinaryIO, process.stdout))
        except BrokenPipeError:
            frame = None
        except ConfigError:  # what it wrote is no reply, and the start of the next one is unknown
            end_process(process)
            frame = None
        if frame is None:
            return pack_reply(Reply(error=f"the site's process ended during the request ({_how(process.wait())})"))
        return frame

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            end_process(process)

    def _started(self) -> subprocess.Popen[bytes]:
        words = [sys.executable, *isolated(__name__), *self.arguments]
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 (our own module)


def end_process(process: subprocess.Popen[bytes], grace: float = _GRACE) -> None:
    """Ask a process to end; if it has not after ``grace`` seconds, kill it."""
    process.terminate()
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(site: LocalSite, incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Reply to requests until the pipe is closed, as it is when the asking process ends."""
    while (frame := read_frame(incoming)) is not None:
        write_frame(outgoing, *site.forward(frame))
    site.close()


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s - %(levelname)s - %(message)s")
    frames = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything prints belongs to the log, not between the frames
    folder, name, settings, root = sys.argv[1:5]
    serve(LocalSite(folder, name, settings, root), sys.stdin.buffer, frames)
