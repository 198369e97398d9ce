"""The error of the process that runs llama.cpp, which imports little."""

from __future__ import annotations


class WorkerError(Exception):
    """A file or a prompt can't be run or traced.

    Attributes:
        message: The end of a sentence that begins with the file.
        hint: What to do.
        is_untraceable: Whether llama.cpp runs it, but its decisions can't be seen.
    """

    def __init__(self, message: str, *, hint: str, is_untraceable: bool = False) -> None:
        super().__init__(message)
        self.message, self.hint, self.is_untraceable = message, hint, is_untraceable
