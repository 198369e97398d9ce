"""What these tests run is small: see `tests.one_thread`."""

from tests.one_thread import one_thread as one_thread
