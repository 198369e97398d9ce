"""Run these small models on one thread: see `tests.one_thread`."""

from tests.one_thread import one_thread as one_thread
