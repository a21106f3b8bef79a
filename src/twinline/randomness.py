"""Random draws that leave torch's global generators as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fork_generators(seed: int | None = None) -> Iterator[None]:
    """Inside the block, or the function that this decorates, torch may be seeded and draw.

    Behind it the global generators of the processor and of every GPU stand where they stood: a
    caller's own draws are the same with Twinline's work between them and without. With ``seed`` the
    block begins at that. What draws on the processor alone needs no more than ``fork_rng(())``.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices):
        if seed is not None:
            torch.manual_seed(seed)
        yield
