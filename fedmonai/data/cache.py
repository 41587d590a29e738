# SPDX-License-Identifier: Apache-2.0
"""Cache of prepared slices (none, memory, disk, device), how much it may take, and files kept open per process."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedmonai.data.damage import damage_named
from fedmonai.data.kspace.read import KspaceHeader, SliceSpec, open_handle, open_volume, read_slices
from fedmonai.errors import ConfigError
from fedmonai.io import atomic_path

Handle = TypeVar("Handle")

HEADROOM = 0.9  # share of the free space a cache may fill; the rest is for the network, the loader and other programs

_CGROUP_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_memory() -> int:
    """Bytes of main memory that are free now, on the machine or within the container's limit if that is less."""
    return min([_machine_memory(), *_container_memory()])


def fits_in_memory(size: int) -> bool:
    """Whether ``size`` bytes fit into the memory that is free now, with room left for everything else."""
    return size <= HEADROOM * available_memory()


def available_device_memory(device: torch.device) -> int:
    """Free bytes of a CUDA device; any other device shares the main memory.

    What PyTorch's allocator holds and no tensor uses counts as free: a site that was offloaded leaves its memory there.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return available_memory()


def fits_on_device(size: int, device: torch.device) -> bool:
    """Whether ``size`` bytes fit into the memory of a device that is free now, with half of it left for training."""
    return size <= available_device_memory(device) / 2


def available_disk(folder: Path) -> int:
    """Free bytes of the file system ``folder`` will lie on (it may not exist yet)."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def refuse_if_larger(cache: str, needed: int, available: int, where: str) -> None:
    """Refuse a cache that does not fit, before it is filled.

    Raises:
        ConfigError: with the numbers and what to do instead.
    """
    if needed > HEADROOM * available:
        other = "" if cache == "disk" else "cache: disk (with cache_dir), "
        raise ConfigError(
            f"cache: '{cache}' needs {_gib(needed)}, but {_gib(available)} of {where} are free (at most {HEADROOM:.0%} "
            f"of it may be used); choose {other}cache: none, a slice_range or a smaller sample_rate."
        )


def _machine_memory() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # counts the page cache as free, which sysconf's SC_AVPHYS_PAGES does not
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _container_memory() -> list[int]:
    free = []
    for limit_file, usage_file in _CGROUP_LIMITS:
        limit, usage = Path(limit_file), Path(usage_file)
        if limit.exists() and usage.exists():
            text = limit.read_text().strip()
            if text.isdigit():  # "max" means no limit
                free.append(max(0, int(text) - int(usage.read_text())))
    return free


def _gib(size: int) -> str:
    return f"{size / 1024**3:.3g} GiB"


class OpenFiles(Generic[Handle]):
    """Pool of the ``capacity`` most recently used file handles, opened on demand.

    A loader worker is a copy of the process that made the dataset. Handles are never shared between processes: a new
    one (by fork or by pickling) starts with none and opens its own.

    Args:
        opener: makes a handle from a path.
        close: closes a handle; called for the least recently used one when ``capacity`` is exceeded.
        capacity: at least 1; one volume's slices are read in a row by an unshuffled loader, hence few suffice there.

    Example:
        >>> files = OpenFiles(opener=str.upper, close=print, capacity=1)
        >>> files.read("a.h5", len)
        4
        >>> files.read("b.h5", len)
        A.H5
        4
    """

    def __init__(self, opener: Callable[[str], Handle], close: Callable[[Handle], Any], capacity: int = 16) -> None:
        self.opener = opener
        self.close = close
        self.capacity = max(1, capacity)
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._handles: OrderedDict[str, Handle] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str, reader: Callable[[Handle], Any]) -> Any:
        """Return ``reader(handle of path)``; the handle cannot be closed by another thread meanwhile."""
        if self._process != os.getpid():
            self._reset()
        with self._lock:
            handle = self._handles.pop(path, None)
            if handle is None:
                handle = self.opener(path)
            self._handles[path] = handle
            while len(self._handles) > self.capacity:
                self.close(self._handles.popitem(last=False)[1])
            return reader(handle)

    def __len__(self) -> int:
        """Number of handles open in this process."""
        return len(self._handles) if self._process == os.getpid() else 0

    def __getstate__(self) -> dict[str, Any]:
        return {"opener": self.opener, "close": self.close, "capacity": self.capacity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


_BLOCK = 8  # slices transformed at a time while a cache is filled


@dataclass(frozen=True)
class VolumeSlices:
    """The slices in use of one volume, ``first`` to ``last - 1``."""

    header: KspaceHeader
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first


class SliceCache(ABC):
    """Cache that returns slice ``index`` (counted within the file) of a volume as (k-space, target or None)."""

    def __init__(self, volumes: Sequence[VolumeSlices], spec: SliceSpec) -> None:
        self.volumes = list(volumes)
        self.spec = spec

    @abstractmethod
    def read(self, volume: int, index: int) -> tuple[Tensor, Tensor | None]: ...

    def nbytes(self) -> int:
        """Bytes that all slices take."""
        return sum(len(volume) * self.spec.slice_bytes(volume.header) for volume in self.volumes)


class NoCache(SliceCache):
    """Cache that holds nothing: every access reads the file; a few files stay open per process."""

    def __init__(self, volumes: Sequence[VolumeSlices], spec: SliceSpec, open_files: int) -> None:
        super().__init__(volumes, spec)
        self.files = OpenFiles(open_handle, _close, open_files)

    def read(self, volume: int, index: int) -> tuple[Tensor, Tensor | None]:
        header = self.volumes[volume].header
        kspace, target = self.files.read(
            header.path, lambda file: read_slices(file, header, index, index + 1, self.spec)
        )
        return kspace[0], None if target is None else target[0]


class MemoryCache(SliceCache):
    """Cache of all slices as tensors on one device, filled at construction.

    Filled by the parent process, main memory is shared by forked loader workers instead of being read once by each.
    The tensors handed out are views: clone before writing to them.
    """

    def __init__(self, volumes: Sequence[VolumeSlices], spec: SliceSpec, device: torch.device | None = None) -> None:
        super().__init__(volumes, spec)
        self.device = device or torch.device("cpu")
        name = "memory" if device is None else "device"
        free = available_device_memory(self.device)
        refuse_if_larger(name, self.nbytes(), free, "memory" if device is None else f"{device} memory")
        self._kspace: list[Tensor] = []
        self._target: list[Tensor | None] = []
        for volume in self.volumes:
            kspace, target = _allocate(volume, spec, self.device)
            for start, block_kspace, block_target in _blocks(volume, spec):
                kspace[start : start + len(block_kspace)] = block_kspace.to(self.device)
                if target is not None and block_target is not None:
                    target[start : start + len(block_target)] = block_target.to(self.device)
            self._kspace.append(kspace)
            self._target.append(target)

    def read(self, volume: int, index: int) -> tuple[Tensor, Tensor | None]:
        position = index - self.volumes[volume].first
        worker = torch.utils.data.get_worker_info() is not None
        if worker and self.device.type != "cpu":
            raise ConfigError("cache: 'device' cannot be read by loader workers; set num_workers to 0.")
        kspace, target = self._kspace[volume][position], self._target[volume]
        image = None if target is None else target[position]
        if worker:  # a view sent to the main process would take its whole volume along
            kspace, image = kspace.clone(), None if image is None else image.clone()
        return kspace, image


class DiskCache(SliceCache):
    """Cache of all slices as memory-mapped ``.npy`` files in ``cache_dir``, which later runs reuse.

    A file's name is a hash of the volume's path, size, time of change, slice range and form, so that a changed volume
    or setting makes a new file; old ones can be deleted at any time between runs.
    """

    def __init__(self, volumes: Sequence[VolumeSlices], spec: SliceSpec, cache_dir: Path, open_files: int) -> None:
        super().__init__(volumes, spec)
        self.cache_dir = cache_dir
        self.arrays = OpenFiles(_memory_map, _drop, open_files)
        self._stems = [cache_dir / _cache_name(volume, spec) for volume in self.volumes]
        missing = [index for index, stem in enumerate(self._stems) if not _kspace_path(stem).is_file()]
        needed = sum(len(self.volumes[index]) * spec.slice_bytes(self.volumes[index].header) for index in missing)
        refuse_if_larger("disk", needed, available_disk(cache_dir), f"disk at {cache_dir}")
        for index in missing:
            self._write(self.volumes[index], self._stems[index])

    def read(self, volume: int, index: int) -> tuple[Tensor, Tensor | None]:
        position = index - self.volumes[volume].first
        kspace = self._load(_kspace_path(self._stems[volume]), position)
        if self.spec.target_shape(self.volumes[volume].header) is None:
            return kspace, None
        return kspace, self._load(_target_path(self._stems[volume]), position)

    def _load(self, path: Path, position: int) -> Tensor:
        return torch.from_numpy(self.arrays.read(str(path), lambda array: np.array(array[position])))

    def _write(self, volume: VolumeSlices, stem: Path) -> None:
        """Write the target first: a volume counts as cached once its k-space file exists."""
        with contextlib.ExitStack() as files:  # closes, and so renames, in reverse order
            count, target_shape = len(volume), self.spec.target_shape(volume.header)
            kspace_part = files.enter_context(atomic_path(_kspace_path(stem)))
            kspace_out = _new_array(kspace_part, np.complex64, (count, *self.spec.kspace_shape(volume.header)))
            target_out = None
            if target_shape is not None:
                target_part = files.enter_context(atomic_path(_target_path(stem)))
                target_out = _new_array(target_part, np.float32, (count, *target_shape))
            for start, kspace, target in _blocks(volume, self.spec):
                kspace_out[start : start + len(kspace)] = kspace.numpy()
                if target_out is not None:
                    target_out[start : start + len(target)] = target.numpy()
            kspace_out.flush()
            if target_out is not None:
                target_out.flush()


def _new_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


def _allocate(volume: VolumeSlices, spec: SliceSpec, device: torch.device) -> tuple[Tensor, Tensor | None]:
    count, target = len(volume), spec.target_shape(volume.header)
    kspace = torch.empty(count, *spec.kspace_shape(volume.header), dtype=torch.complex64, device=device)
    return kspace, None if target is None else torch.empty(count, *target, device=device)


def _blocks(volume: VolumeSlices, spec: SliceSpec) -> Any:
    """Yield (position in the used range, k-space, target) for a few slices at a time."""
    with open_volume(volume.header.path) as file:
        for first in range(volume.first, volume.last, _BLOCK):
            last = min(first + _BLOCK, volume.last)
            yield first - volume.first, *read_slices(file, volume.header, first, last, spec)


def _cache_name(volume: VolumeSlices, spec: SliceSpec) -> str:
    path = Path(volume.header.path).resolve()
    status = path.stat()
    identity = (str(path), status.st_size, status.st_mtime_ns, volume.first, volume.last, *astuple(spec), "v1")
    return f"{path.stem}-{hashlib.sha256(repr(identity).encode()).hexdigest()[:24]}"


def _kspace_path(stem: Path) -> Path:
    return stem.with_name(stem.name + ".kspace.npy")


def _target_path(stem: Path) -> Path:
    return stem.with_name(stem.name + ".target.npy")


def _memory_map(path: str) -> np.ndarray:
    with damage_named(f"cache_dir: {path} is missing or damaged", "; delete it and start again."):
        return np.load(path, mmap_mode="r", allow_pickle=False)


def _close(file: Any) -> None:
    file.close()


def _drop(array: np.ndarray) -> None:
    """Nothing to do: a memory map ends with its last reference."""
