"""Read receipts, strictly: a file that another tool wrote or that was damaged is refused."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import date
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from moetool.checkpoint.strict_json import JsonError, parse_json
from moetool.choices import take_path
from moetool.errors import InputError, MoetoolError
from moetool.memory.receipts.receipt import SCHEMA, Receipt
from moetool.memory.scenario import Scenario
from moetool.printable import printable

_FAMILY = SCHEMA.partition("/")[0] + "/"
_HINT = "Name a file that `moetool memory-estimate --measure --save` wrote."
_LARGEST_FILE_BYTES = 64 * 2**20
_KINDS = {int: "a whole number", float: "a number", str: "a text"}


class _DamageError(Exception):
    """A value is not what a receipt has there. The message is the end of a sentence."""


def read_receipts(path: str | Path) -> list[Receipt]:
    """Return the receipts in a file that `--save` or `save_receipts` wrote.

    Raises:
        InputError: The file can't be read, is not a file of receipts, is of another version, or a
            value in it is not what a receipt has there.
    """
    path = take_path(path, name="path of the receipts")
    value = _parse(path)
    schema = value.get("schema") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(schema, str) or not schema.startswith(_FAMILY):
        raise InputError(f"'{path}' is not a file of receipts.", hint=_HINT)
    if schema != SCHEMA:
        raise InputError(
            f"'{path}' has receipts of the version {printable(schema)}, and this moetool reads {SCHEMA}.",
            hint="Read it with the moetool that wrote it, or with a newer one.",
        )
    try:
        unknown = value.keys() - {"schema", "receipts"}
        if unknown:
            raise _DamageError(f"it has the unknown field {printable(min(unknown))!r}")
        receipts = _take(tuple[Receipt, ...], value.get("receipts"), "receipts")
        for index, receipt in enumerate(receipts):
            _check(receipt, f"receipts[{index}]")
    except _DamageError as error:
        raise InputError(f"'{path}' is damaged: {error}.", hint=_HINT) from None
    return list(receipts)


def _parse(path: Path) -> object:
    try:
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            raise InputError(f"'{path}' is too large for a file of receipts.", hint=_HINT)
        return parse_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"'{path}' can't be read: {error.strerror}.", hint=_HINT) from error
    except JsonError as error:
        raise InputError(f"'{path}' is not JSON: {error}.", hint=_HINT) from error


def _take(kind: Any, value: object, where: str) -> Any:
    """Return a value as a type: a dataclass, a text, a number, several of them, or None."""
    if get_origin(kind) in (types.UnionType, Union):
        if value is None and type(None) in get_args(kind):
            return None
        (kind,) = (each for each in get_args(kind) if each is not type(None))
    if kind is Scenario:
        return _take_scenario(value, where)
    if is_dataclass(kind) and isinstance(kind, type):
        return _take_object(kind, value, where)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise _DamageError(f"{where} is not a list")
        item = get_args(kind)[0]
        return tuple(_take(item, each, f"{where}[{index}]") for index, each in enumerate(value))
    if get_origin(kind) is Mapping:
        if not isinstance(value, dict):
            raise _DamageError(f"{where} is not an object")
        item = get_args(kind)[1]
        return {
            name: _take(item, each, f"{where}.{printable(name)}") for name, each in value.items()
        }
    return _take_plain(kind, value, where)


def _take_plain(kind: Any, value: object, where: str) -> Any:
    is_right = type(value) is kind or (kind is float and type(value) is int)
    if not is_right:
        raise _DamageError(f"{where} is not {_KINDS[kind]}")
    if isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
        raise _DamageError(f"{where} is negative or not finite")
    return kind(value)


def _take_object(kind: Any, value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise _DamageError(f"{where} is not an object")
    hints = get_type_hints(kind)
    unknown = value.keys() - hints.keys()
    if unknown:
        raise _DamageError(f"{where} has the unknown field {printable(min(unknown))!r}")
    needed = {
        each.name
        for each in fields(kind)
        if each.default is MISSING and each.default_factory is MISSING
    }
    if missing := needed - value.keys():
        raise _DamageError(f"{where} lacks {min(missing)!r}")
    return kind(
        **{name: _take(hints[name], each, f"{where}.{name}") for name, each in value.items()}
    )


def _take_scenario(value: object, where: str) -> Scenario:
    if not isinstance(value, dict):
        raise _DamageError(f"{where} is not an object")
    unknown = value.keys() - {each.name for each in fields(Scenario)}
    if unknown:
        raise _DamageError(f"{where} has the unknown option {printable(min(unknown))!r}")
    try:
        return Scenario(**value)
    except MoetoolError as error:
        raise _DamageError(f"{where}: {printable(error.message.removesuffix('.'))}") from None


def _check(receipt: Receipt, where: str) -> None:
    try:
        date.fromisoformat(receipt.date)
    except ValueError:
        raise _DamageError(f"{where}.date is not a day such as 2026-11-27") from None
    figures = receipt.measured.figures
    if None in (figures.weights_bytes, figures.peak_allocated_bytes, figures.peak_reserved_bytes):
        raise _DamageError(f"{where}.measured lacks a figure")
