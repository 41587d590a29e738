# SPDX-License-Identifier: Apache-2.0
"""Whatever pictures lie in a folder (PNG, JPEG, TIFF, HDF5), prepared as in training, to segment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai.data
import numpy as np
import torch

from fedmonai.data.kspace_file import open_volume
from fedmonai.data.weak_lists import IMAGE_SUFFIXES
from fedmonai.data.weak_sources import IMAGE_KEY, min_max_normalize, picture_size, read_dataset, read_picture
from fedmonai.errors import ConfigError
from fedmonai.transforms.plane import fit_plane

__all__ = ["PictureFolder"]


@dataclass(frozen=True)
class PictureFile:
    """A file to segment: its path, a name that is unique in the folder, its size."""

    path: Path
    name: str
    kind: str
    slices: int
    rows: int
    columns: int


class PictureFolder(monai.data.Dataset):
    """One example = one file with all its slices, for inference; prepared as :class:`WeakSliceDataset` does it.

    An item holds, for n slices (1 of a picture): ``image`` float32 (n, channels, size, size), every slice scaled to
    [0, 1]; ``volume``, a name that is unique in the folder; ``source``, the path; ``kind`` (``picture`` or ``hdf5``);
    ``slices``, ``rows`` and ``columns`` of the file; ``fit``, for the way back.

    HDF5 files need the key ``image`` only: (H, W), or (3, H, W) for a network of 3 channels; with 1 channel the first
    of three axes counts slices.

    Args:
        data: folder, searched with its sub-folders, or one file.
        channels: channels of the network; pictures are converted to gray (1) or color (3).
        size: side of the square that the network takes, as in training; None keeps the size.
        fit: ``resize`` or ``pad``, as in training.
        skip_damaged: go on without files that cannot be read instead of stopping before the first one.

    Raises:
        ConfigError: nothing to segment, or a file that is damaged or of another form; the message names it.
    """

    def __init__(
        self, data: str, channels: int, size: int | None = None, fit: str = "resize", skip_damaged: bool = False
    ) -> None:
        root = Path(data)
        if not root.exists():
            raise ConfigError(f"dataset_dir: {root} does not exist; give a folder of pictures, or one file.")
        paths = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
        paths = [path for path in paths if path.suffix.lower() in (*IMAGE_SUFFIXES, ".h5")]
        self.channels, self.size, self.fit = channels, size, fit
        found: list[PictureFile] = []
        self.skipped: list[str] = []
        for path in paths:
            try:
                found.append(self._described(path, root))
            except ConfigError as error:
                if not skip_damaged:
                    raise ConfigError(f"{error} Take it out of the folder or set skip_damaged: true.") from error
                self.skipped.append(str(error))
        if not found:
            raise ConfigError(f"dataset_dir: {root} holds no picture ({', '.join(IMAGE_SUFFIXES)}) and no .h5 file.")
        super().__init__(found)

    def _described(self, path: Path, root: Path) -> PictureFile:
        parts = [path.name] if root.is_file() else list(path.relative_to(root).parts)
        same_stem = [p for p in path.parent.iterdir() if p.stem == path.stem and p != path]
        parts[-1] = path.name.replace(".", "_") if same_stem else path.stem
        name = "_".join(parts)
        if path.suffix.lower() != ".h5":
            return PictureFile(path, name, "picture", 1, *picture_size(str(path)))
        with open_volume(str(path)) as file:
            shape = read_dataset(file, IMAGE_KEY).shape
        count = shape[0] if len(shape) == 3 and self.channels == 1 else 1
        expected = {2: self.channels == 1, 3: self.channels == 1 or shape[0] == self.channels}
        if not expected.get(len(shape), False) or min(shape) < 1:
            raise ConfigError(f"{path}: 'image' is {shape}, the network takes {self.channels} channel(s) of a plane.")
        return PictureFile(path, name, "hdf5", count, *shape[-2:])

    def _transform(self, index: int) -> dict[str, Any]:
        entry: PictureFile = self.data[index]
        source = str(entry.path)
        if entry.kind == "picture":
            planes = read_picture(source, self.channels)[None]
        else:
            with open_volume(source) as file:
                values = np.asarray(read_dataset(file, IMAGE_KEY)[...])
            planes = values.reshape(entry.slices, self.channels, entry.rows, entry.columns)
        return {
            "image": torch.stack([self._prepared(plane, source) for plane in planes]),
            "volume": entry.name,
            "source": source,
            "kind": entry.kind,
            "slices": entry.slices,
            "rows": entry.rows,
            "columns": entry.columns,
            "fit": self.fit,
        }

    def _prepared(self, plane: np.ndarray, source: str) -> torch.Tensor:
        values = torch.from_numpy(plane.astype(np.float32))
        if self.fit == "resize":  # before scaling, as in training
            values = fit_plane(values, self.size, self.fit)
        return fit_plane(torch.from_numpy(min_max_normalize(values.numpy(), source)), self.size, self.fit)
