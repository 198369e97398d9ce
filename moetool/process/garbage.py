"""Python's search for garbage while skeletons are built and simulated."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Python's own numbers are 700, 10 and 10.
_SELDOM = (50_000, 20, 20)

_lock = threading.Lock()
_num_inside = 0
_before = gc.get_threshold()


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Have Python search for garbage seldom in a block, or in a function as its decorator.

    Skeletons and simulated runs are made of millions of objects that stay. By default each search
    looks through many of them, which takes a third of the time of inspecting 60,000 experts. They have
    shapes and no data, so that garbage waiting to be found is small. Real tensors in cycles would fill the
    memory: nothing that computes belongs in such a block.

    The setting belongs to the process. It is again as before once the last thread has left its
    block. Searches that are switched off stay so.
    """
    global _num_inside, _before
    with _lock:
        if not _num_inside:
            _before = gc.get_threshold()
            if _before[0]:
                gc.set_threshold(*map(max, _before, _SELDOM))
        _num_inside += 1
    try:
        yield
    finally:
        with _lock:
            _num_inside -= 1
            if not _num_inside:
                gc.set_threshold(*_before)
