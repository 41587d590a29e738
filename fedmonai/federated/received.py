# SPDX-License-Identifier: Apache-2.0
"""Received sets: tensors that a site keeps by their digest, so that the server need not send them again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.federated.frames import digest_of, read_frame, write_frame
from fedmonai.federated.messages import WEIGHTS, Request, attachments_of
from fedmonai.io import make_folder, private_opener

__all__ = ["ReceivedSets"]


class ReceivedSets:
    """Store of the sets of tensors that this site was sent in this run, one file each, named by their digest.

    Nothing else is ever put here: neither what the site has trained nor what it was built with. The reply to a digest
    therefore tells a server only whether the site still has what that server has sent it. Files are read again whole
    and their digest is computed again: a damaged file counts as missing. On disk, so that they outlast the process:
    Flower makes a new client for every message.

    Args:
        folder: the folder; made when the first set comes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def complete(self, request: Request) -> list[str]:
        """Put into a request's message what the site holds of it; return the items that it does not hold."""
        missing = []
        for item in request.held:
            tensors = self._read(request.digests[item])
            if tensors is None:
                missing.append(item)
            elif request.message is not None:
                _put(request, item, tensors)
        return missing

    def keep(self, request: Request) -> None:
        """Write the sets that came with a request and are to be kept; remove those that no digest of it names."""
        wanted = {*request.digests.values(), *request.keep}
        for path in self.folder.glob("*"):
            if path.name not in wanted:
                path.unlink(missing_ok=True)
        for item, digest in request.digests.items():
            tensors = _item(request, item)
            if tensors and not self._path(digest).exists():
                self._write(digest, tensors)

    def _path(self, digest: str) -> Path:
        return self.folder / digest

    def _write(self, digest: str, tensors: Mapping[str, Tensor]) -> None:
        # neither flushed to disk nor needed: what a power failure leaves has another digest, and is asked for again
        make_folder(self.folder, private=True)
        partial = self._path(f".part-{digest}")
        with open(partial, "wb", opener=private_opener) as stream:
            write_frame(stream, tensors, {})
        partial.replace(self._path(digest))

    def _read(self, digest: str) -> dict[str, Tensor] | None:
        try:
            with open(self._path(digest), "rb") as stream:
                frame = read_frame(stream)
        except (OSError, ConfigError):
            frame = None
        if frame is not None and digest_of(frame[0]) == digest:
            return frame[0]
        self._path(digest).unlink(missing_ok=True)
        return None


def _item(request: Request, item: str) -> Mapping[str, Tensor]:
    message = request.message
    if message is None:
        return {}
    return message.weights or {} if item == WEIGHTS else attachments_of(message).get(item, {})


def _put(request: Request, item: str, tensors: dict[str, Tensor]) -> None:
    assert request.message is not None  # noqa: S101 (for mypy; the caller has looked)
    if item == WEIGHTS:
        request.message.weights = tensors
    else:
        request.message[item] = tensors
