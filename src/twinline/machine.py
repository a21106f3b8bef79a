"""The machine: in words, beside a figure; how much memory it has left, and how it hands it out."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path


def describe() -> str:
    """Processor, usable cores and PyTorch: what stands beside a figure."""
    import torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if torch.cuda.is_available():
        name += f", {torch.cuda.get_device_name(0)}"
    best = "AVX-512" if "AVX512" in torch.backends.cpu.get_cpu_capability() else "no AVX-512"
    return f"{name}, {cores} cores, {best}, torch {torch.__version__.split('+')[0]}"


def free_memory() -> int | None:
    """Bytes of main memory that a process may still take, its control group's limit heeded.

    None where the system does not say.
    """
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except OSError:
        if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
            found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    group = Path("/sys/fs/cgroup")
    try:  # files that the group has read are counted as used, but give way
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        limit = int((group / "memory.max").read_text())
        found.append(limit - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):
        pass  # no control group of the second version here, or no limit ("max")
    return max(0, min(found)) if found else None


def keep_memory() -> bool:
    """Let memory that this process frees stay with it, for the next tensor.

    By itself glibc maps every block above 32 MB anew and unmaps it when it is freed, so that a
    training step pays a page fault for every 4 KB of every large tensor, a good part of its time at
    8,192 tokens a step. With this set, freed blocks are used again where they fit: PyTorch's are
    aligned, and some still do not. ``make bench`` times training with it.

    Returns: False where the C library is another, and nothing has been changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    trim_threshold, mmap_max = -1, -4  # names and numbers of malloc.h
    return bool(mallopt(mmap_max, 0)) and bool(mallopt(trim_threshold, -1))
