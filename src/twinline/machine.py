"""The machine that figures were measured on, in words."""

from __future__ import annotations

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
