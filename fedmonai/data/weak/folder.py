# SPDX-License-Identifier: Apache-2.0
"""Dataset of the pictures in a folder (PNG, JPEG, TIFF, HDF5) for inference, prepared as in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedmonai.data.convert.volume import Source
from fedmonai.data.damage import without_path
from fedmonai.data.folder import VolumeFolder
from fedmonai.data.kspace.read import open_volume
from fedmonai.data.pictures import PICTURE_SUFFIXES, picture_size, read_picture
from fedmonai.data.weak.read import IMAGE_KEY, min_max_normalize, read_dataset
from fedmonai.errors import ConfigError
from fedmonai.io import InputPath
from fedmonai.transforms.slices import fit_plane

__all__ = ["PictureFolder"]


class PictureFolder(VolumeFolder):
    """Dataset of picture files with all their slices, for inference.

    Prepared as in :class:`~fedmonai.data.weak.dataset.WeakSliceDataset`.

    An item holds, for n slices (1 of a picture): ``image`` float32 (n, channels, size, size), every slice scaled to
    [0, 1]; ``volume``, ``source`` and ``kind`` of :class:`VolumeFolder`; ``slices``, ``rows`` and ``columns`` of the
    file; ``resize_mode``, which :class:`~fedmonai.transforms.slices.ClassesInPlaned` needs to bring masks back to the
    file's size.

    HDF5 files need the key ``image`` only: (H, W), or (3, H, W) for a network of 3 channels; with 1 channel the first
    of three axes counts slices.

    Args:
        data: folder, searched with its sub-folders, or one file.
        image_channels: channels of the network; pictures are converted to gray (1) or color (3).
        size: side of the square that the network takes, as in training; None keeps the size.
        resize_mode: ``resize`` or ``pad``, as in training.
        skip_damaged: go on without files that cannot be read instead of stopping before the first one.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from PIL import Image
        >>> with TemporaryDirectory() as folder:
        ...     Image.linear_gradient("L").save(f"{folder}/eye.png")
        ...     item = PictureFolder(folder, image_channels=1, size=32)[0]
        >>> item["volume"], tuple(item["image"].shape), item["rows"]
        ('eye', (1, 1, 32, 32), 256)

    Raises:
        ConfigError: nothing to segment, or a file that is damaged or of another form; the message names it.
    """

    kinds = ("picture", "hdf5")
    expected = f"picture ({', '.join(PICTURE_SUFFIXES)}) or .h5 file"

    def __init__(
        self,
        data: InputPath,
        image_channels: int,
        size: int | None = None,
        resize_mode: str = "resize",
        skip_damaged: bool = False,
    ) -> None:
        self.image_channels, self.size, self.resize_mode = image_channels, size, resize_mode
        super().__init__(data, skip_damaged)

    def find(self, root: Path) -> tuple[list[Source], list[tuple[str, str]]]:
        """The pictures and HDF5 files in a folder; other files are ignored."""
        sources, failed = [], []
        paths = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
        for path in paths:
            if path.suffix.lower() in (*PICTURE_SUFFIXES, ".h5"):
                try:
                    kind = self._check(path)
                    sources.append(Source(kind, str(path), (path,), "", _name(path, root)))
                except ConfigError as error:
                    failed.append((str(path), without_path(error, path)))
        return sources, failed

    def _check(self, path: Path) -> str:
        """The kind of a file; a file that cannot be used is refused before any is segmented."""
        if path.suffix.lower() != ".h5":
            picture_size(str(path))
            return "picture"
        with open_volume(str(path)) as file:
            shape = read_dataset(file, IMAGE_KEY).shape
        expected = {2: self.image_channels == 1, 3: self.image_channels == 1 or shape[0] == self.image_channels}
        if not expected.get(len(shape), False) or min(shape) < 1:
            raise ConfigError(
                f"{path}: 'image' is {shape}, the network takes {self.image_channels} channel(s) of a plane."
            )
        return "hdf5"

    def read(self, source: Source) -> dict[str, Any]:
        """The prepared slices of one file and their size in the file."""
        if source.kind == "picture":
            planes = read_picture(source.label, self.image_channels)[None]
        else:
            with open_volume(source.label) as file:
                values = np.asarray(read_dataset(file, IMAGE_KEY)[...])
            planes = values.reshape(-1, self.image_channels, *values.shape[-2:])
        return {
            "image": torch.stack([self._prepared(plane) for plane in planes]),
            "slices": planes.shape[0],
            "rows": planes.shape[-2],
            "columns": planes.shape[-1],
            "resize_mode": self.resize_mode,
        }

    def _prepared(self, plane: np.ndarray) -> torch.Tensor:
        values = torch.from_numpy(plane.astype(np.float32))
        if self.resize_mode == "resize":  # before scaling, as in training
            values = fit_plane(values, self.size, self.resize_mode)
        return fit_plane(torch.from_numpy(min_max_normalize(values.numpy())), self.size, self.resize_mode)


def _name(path: Path, root: Path) -> str:
    """The path within the folder as one word; with the ending where another file has the same stem."""
    same_stem = [other for other in path.parent.iterdir() if other.stem == path.stem and other != path]
    last = path.name.replace(".", "_") if same_stem else path.stem
    return last if root.is_file() else "_".join([*path.relative_to(root).parts[:-1], last])
