"""Lines, JSON values and arrays of foreign text files, checked as they are read."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.printable import printable
from moetool.wording import format_bytes

# A response of 100,000 tokens of a large model takes a few hundred mebibytes.
_MOST_BYTES = 2**30
# Beginnings of pickles, by protocol.
PICKLE_STARTS = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_FORMAT_HINT = "Let moetool import --detect FILE say what the file is."


class Line(NamedTuple):
    """A line of a file.

    Attributes:
        number: From 1.
        text: Without its end.
        is_cut: Whether it is the last one and has no end.
        source: The file and the line, for error messages.
    """

    number: int
    text: bytes
    is_cut: bool
    source: str


def open_input(path: Path) -> BinaryIO:
    """Open a file for reading.

    Raises:
        InputError: There is none, or it can't be read.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "neither a file nor a folder"
            raise InputError(
                f"'{printable(path)}' is {kind}, not a file.",
                hint="Name files of one format; ESFT, TensorRT-LLM and Megatron-LM write folders.",
            )
        return path.open("rb")
    except (OSError, ValueError) as error:
        raise InputError(
            f"'{printable(path)}' can't be read: {getattr(error, 'strerror', None) or error}.",
            hint="Name a file that you may read.",
        ) from error


def read_whole(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        InputError: It can't be read, or is longer than any file of its kind.
    """
    with open_input(path) as file:
        content = file.read(_MOST_BYTES + 1)
    if content.startswith(PICKLE_STARTS):
        raise refuse_pickle(path)
    if len(content) > _MOST_BYTES:
        raise damaged(quote(path), f"is longer than {format_bytes(_MOST_BYTES)}")
    return content


def iter_lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a file that are not blank.

    Raises:
        InputError: The file can't be read, or a line is longer than any of its kind.
    """
    number = 0
    with open_input(path) as file:
        while text := file.readline(_MOST_BYTES + 1):
            number += 1
            if number == 1 and text.startswith(PICKLE_STARTS):
                raise refuse_pickle(path)
            source = f"{quote(path)}, line {number}"
            if len(text) > _MOST_BYTES:
                raise damaged(source, f"is longer than {format_bytes(_MOST_BYTES)}")
            if text.strip():
                is_cut = not text.endswith(b"\n")
                yield Line(number, text.rstrip(b"\r\n"), is_cut, source)


def load_json(text: bytes, *, source: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        InputError: It is not JSON.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise damaged(source, "is nested too deeply") from None
    except ValueError as error:
        raise damaged(source, "is not JSON", seen=error) from None


def take_object(value: Any, *, source: str) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        InputError: It is another value.
    """
    if not isinstance(value, dict):
        raise damaged(source, "is not a JSON object")
    return value


def take_integer(value: Any, *, name: str, source: str, least: int = 0) -> int:
    """Return a whole number.

    Raises:
        InputError: It is another value, or less than `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise damaged(source, f"holds no whole number from {least} as {name!r}")
    return value


def take_array(value: Any, *, num_dimensions: int, name: str, source: str) -> NDArray[np.int64]:
    """Return an array of whole numbers.

    Raises:
        InputError: It is another value, or ragged.
    """
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError, TypeError, RecursionError):
        array = np.zeros(())
    if array.size == 0 and array.ndim <= num_dimensions:
        array = np.zeros((0,) * num_dimensions, dtype=np.int64)
    if array.dtype.kind not in "iu" or array.ndim != num_dimensions:
        shape = "list" + " of lists" * (num_dimensions - 1)
        raise damaged(source, f"holds no {shape} of whole numbers as {name!r}")
    return array.astype(np.int64)


def damaged(source: str, what: str, *, seen: object = None, hint: str = _FORMAT_HINT) -> InputError:
    """Return the error for a file that is not what its format says.

    Args:
        source: The file, and the place in it.
        what: What is wrong, as the rest of the sentence.
        seen: What a library said about it.
        hint: What to do.
    """
    facts = [] if seen is None else [f"seen: {printable(str(seen).strip().partition(chr(10))[0])}"]
    return InputError(f"{source} {what}.", hint=hint, facts=facts)


def refuse_pickle(path: Path) -> InputError:
    """Return the error for a pickle, which runs code when it is read."""
    return InputError(
        f"{quote(path)} is a pickle that may run code when it is loaded, so it isn't read.",
        hint="Name a file that torch.load reads with weights_only=True, or the tool's other output.",
    )


def make_prefixes(paths: Sequence[Path]) -> dict[Path, str]:
    """Return, for each of several files, what begins the ids of its prompts: nothing for one file."""
    if len(paths) == 1:
        return {paths[0]: ""}
    stems = [path.stem for path in paths]
    return {
        path: f"{path.stem}/" if stems.count(path.stem) == 1 else f"{path.stem}#{number}/"
        for number, path in enumerate(paths)
    }


def quote(path: Path) -> str:
    """Return a path in quotation marks, for a message."""
    return f"'{printable(os.fspath(path))}'"
