"""Python's search for garbage in a process that makes much and keeps most of it."""

from __future__ import annotations

import gc

# Python's own numbers are 700, 10 and 10.
_NUM_NEW_OBJECTS = 50_000
_NUM_YOUNGER_SEARCHES = 20


def collect_seldom() -> None:
    """Search for garbage seldom from now on: a process that ends soon has little.

    Skeletons and simulated runs are made of millions of objects that stay to the end. By default
    each search looks through many of them, which takes a third of the time of an estimate.
    """
    gc.set_threshold(_NUM_NEW_OBJECTS, _NUM_YOUNGER_SEARCHES, _NUM_YOUNGER_SEARCHES)
