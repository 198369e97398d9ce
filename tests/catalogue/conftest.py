"""Tests in this folder run small models, so one thread is fastest: see `tests.one_thread`."""

from tests.one_thread import one_thread as one_thread
