"""A JSON parser that refuses what readers disagree about."""

from __future__ import annotations

import json
from collections.abc import Callable

# Configurations nest to five or six. What reads them further on may go into each level by several
# calls, and Python makes a thousand at most.
_MOST_LEVELS = 100


class JsonError(Exception):
    """Some bytes can't be read as JSON. The message is the end of a sentence."""


def parse_json(content: bytes, *, parse_int: Callable[[str], int] | None = None) -> object:
    """Return the JSON value in some bytes.

    `NaN` and `Infinity` are accepted, because Python writes them into published configurations.

    Args:
        content: UTF-8, without a byte order mark.
        parse_int: Parses an integer; by default, Python's own rules apply.

    Raises:
        JsonError: They are not JSON; a key occurs twice, of which readers take one or the other; half
            a surrogate pair occurs in a text, which can't be written again; or they are nested more
            deeply than any file of a checkpoint.
    """
    try:
        value: object = json.loads(
            content.decode(), object_pairs_hook=_build_object, parse_int=parse_int
        )
        if b"\\u" in content:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise JsonError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise JsonError("it has half a character in it") from None
    except ValueError as error:
        raise JsonError(str(error)) from error
    _check_levels(value)
    return value


def _check_levels(value: object) -> None:
    level = [value]
    for _ in range(_MOST_LEVELS):
        level = [
            part
            for whole in level
            if isinstance(whole, dict | list)
            for part in (whole.values() if isinstance(whole, dict) else whole)
            if isinstance(part, dict | list)
        ]
        if not level:
            return
    raise JsonError("it is nested too deeply")


def _build_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    built = dict(pairs)
    if len(built) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise JsonError(f"it has {name!r:.100} twice in one object")
            seen.add(name)
    return built
