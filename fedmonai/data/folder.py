# SPDX-License-Identifier: Apache-2.0
"""Base of the datasets for inference: every image in a folder is one example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import monai.data

from fedmonai.data.convert.scan import Naming, find_sources
from fedmonai.data.convert.volume import Source
from fedmonai.errors import ConfigError
from fedmonai.io import InputPath

__all__ = ["VolumeFolder"]


class VolumeFolder(monai.data.Dataset):
    """Dataset of all images in a folder; one example is one file or one DICOM series with all its slices.

    Every item holds ``volume`` (a name that is unique in the folder), ``source`` (the path it came from), ``kind``, and
    what :meth:`read` returns. Subclasses say which :attr:`kinds` of files they take and override :meth:`read`.

    Args:
        data: folder, searched with its sub-folders, or one file.
        skip_damaged: leave out files that cannot be used, and list them in ``skipped``, instead of stopping at once.

    Raises:
        ConfigError: no such folder, nothing usable in it, or a file that cannot be used; the message names it.
    """

    #: kinds of :class:`Source` that are read, and how messages call them
    kinds: tuple[str, ...]
    expected: str

    def __init__(self, data: InputPath, skip_damaged: bool = False) -> None:
        root = Path(data)
        if not root.exists():
            raise ConfigError(f"dataset_dir: {root} does not exist; give a folder, or one file.")
        sources, failed = self.find(root)
        if failed and not skip_damaged:
            label, reason = failed[0]
            raise ConfigError(
                f"dataset_dir: {len(failed)} files in {root} cannot be used, first {label}: {reason}; take them out or "
                "set skip_damaged: true."
            )
        if not sources:
            raise ConfigError(f"dataset_dir: there is no {self.expected} in {root}.")
        super().__init__(sources)
        self.skipped = [f"{label}: {reason}" for label, reason in failed]

    def find(self, root: Path) -> tuple[list[Source], list[tuple[str, str]]]:
        """The images in a folder, and what cannot be used as (path, reason)."""
        found = find_sources(root, Naming())
        foreign = [
            (source.label, f"is of kind {source.kind}, expected {self.expected}")
            for source in found.sources
            if source.kind not in self.kinds
        ]
        return [source for source in found.sources if source.kind in self.kinds], [*found.failed, *foreign]

    def read(self, source: Source) -> dict[str, Any]:
        """What an item holds of one image.

        Raises:
            ConfigError: the file is damaged or of another form.
        """
        raise NotImplementedError

    def _transform(self, index: int) -> dict[str, Any]:
        source: Source = self.data[index]
        try:
            item = self.read(source)
        except ConfigError as error:
            raise ConfigError(f"{source.label}: {str(error).rstrip('.')}; take it out of the folder.") from error
        return {"volume": source.name, "source": source.label, "kind": source.kind, **item}
