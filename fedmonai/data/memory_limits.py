# SPDX-License-Identifier: Apache-2.0
"""How much a cache may take: memory, GPU memory and disk that are free right now."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from fedmonai.errors import ConfigError

HEADROOM = 0.9  # share of the free space a cache may fill; the rest is for the network, the loader and other programs

_CGROUP_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_memory() -> int:
    """Bytes of main memory that can be had now: the machine's, or the container's where that is less."""
    return min([_machine_memory(), *_container_memory()])


def available_device_memory(device: torch.device) -> int:
    """Free bytes of a CUDA device; any other device shares the main memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory()


def available_disk(folder: Path) -> int:
    """Free bytes of the file system ``folder`` will lie on (it may not exist yet)."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def refuse_if_larger(cache: str, needed: int, available: int, where: str) -> None:
    """Stop before a cache is filled that does not fit.

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
