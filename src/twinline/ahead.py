"""What a function makes of one number after another, made ahead by other processes."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_all_start_methods, get_context
from typing import Any, TypeVar

Made = TypeVar("Made")

AHEAD = 4
"""How many a process is given before the first is asked for."""
LOOKS = 1.0
"""Seconds after which a process looks whether its parent is still there."""


def in_order(make: Callable[[int], Made], numbers: Iterable[int], workers: int) -> Generator[Made]:
    """``make`` of each number, in their order, by ``workers`` processes; 0: by this one, each when
    it is asked for.

    The processes are forked, so that they have what ``make`` knows without being sent it; where a
    system cannot fork, there are none. What one raises is raised here. ``make`` must not use a GPU.
    """
    if not workers or "fork" not in get_all_start_methods():
        yield from map(make, numbers)
        return
    pool = ProcessPoolExecutor(workers, get_context("fork"), begin, (make, os.getpid()))
    try:
        rest = iter(numbers)
        waiting: deque[Future[Made]] = deque(
            pool.submit(made, number) for number in islice(rest, AHEAD * workers)
        )
        while waiting:
            first = waiting.popleft().result()
            waiting.extend(pool.submit(made, number) for number in islice(rest, 1))
            yield first
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


held: list[Callable[[int], Any]] = []
"""In a process that makes: by what."""


def begin(make: Callable[[int], Any], parent: int) -> None:
    import torch

    torch.set_num_threads(1)  # there are others beside it
    # A tokenizer's threads are not there after a fork; told to use them, it would wait for ever.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    held[:] = [make]
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()


def end_with(parent: int) -> None:
    """A parent that is killed ends no pool: its processes would wait for ever, with all it held."""
    while os.getppid() == parent:
        time.sleep(LOOKS)
    os._exit(1)


def made(number: int) -> Any:
    return held[0](number)
